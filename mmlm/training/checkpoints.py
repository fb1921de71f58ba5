"""Checkpoints with orbax: the latest n and the best n, written in the background, restored with a fallback.

A step holds `params`, `ema` (when there is one), `rest` (step, optimizer state, random key) and `meta` (JSON).
"""

import contextlib
import errno
import math
import pathlib
import re

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from mmlm.errors import UserError
from mmlm.training.step import TrainState


def higher_is_better(metric: str) -> bool:
  return metric.rpartition('/')[2] not in ('loss', 'perplexity', 'ter', 'wer', 'wer_normalized', 'cer', 'mae', 'calibration_error')


class Checkpoints:
  """The folder `checkpoints/` of a run; only the training (`writing`) makes it and clears what a killed writer left.

  `vocabulary`: the fingerprint of the tokenizer; a step that was trained with another is refused.
  """

  def __init__(
    self, folder, monitor: str = 'loss', keep_latest: int = 2, keep_best: int = 1, writing: bool = True, vocabulary: str = ''
  ):
    self.folder, self.monitor, self.vocabulary = pathlib.Path(folder).absolute(), monitor, vocabulary
    self.sign = 1 if higher_is_better(monitor) else -1
    best = lambda metrics: self.sign * metrics[monitor]
    kept = [checkpoint_managers.LatestN(keep_latest), checkpoint_managers.BestN(get_metric_fn=best, n=keep_best)]
    options = ocp.CheckpointManagerOptions(
      preservation_policy=checkpoint_managers.AnyPreservationPolicy(kept), best_fn=best, best_mode='max',
      create=writing, cleanup_tmp_directories=writing,
    )  # fmt: skip
    self._manager = ocp.CheckpointManager(self.folder, options=options)

  def steps(self) -> list[int]:
    return sorted(self._manager.all_steps())

  def save(self, state: TrainState, meta: dict, metrics: dict):
    """Starts to write a step; training may go on at once. A full disk is a UserError, older steps stay.

    A step whose `metrics` lack the monitored one, or hold no finite value, is never the best.
    """
    items = {name: ocp.args.StandardSave(tree) for name, tree in _items(state).items()}
    value = metrics.get(self.monitor, math.nan)
    value = value if math.isfinite(value) else -self.sign * math.inf
    with _disk_errors(self.folder):
      args = ocp.args.Composite(meta=ocp.args.JsonSave(meta | {'vocabulary': self.vocabulary}), **items)
      self._manager.save(int(state.step), args=args, metrics={self.monitor: value})

  def close(self):
    """Waits until the last step is written."""
    with _disk_errors(self.folder):
      self._manager.wait_until_finished()
    self._manager.close()

  def restore(self, abstract: TrainState) -> tuple[TrainState, dict] | None:
    """The newest step that can be read, and its meta; None when there is no step.

    Newer steps that cannot be read are moved aside to `damaged-<step>` and said so.

    Raises:
      UserError: there are steps, and none can be read; nothing is moved then.
    """
    out, damaged = None, {}
    for step in reversed(self.steps()):
      out, reason = self._read(step, _items(abstract))
      if out is not None:
        break
      damaged[step] = reason
    if out is None and damaged:
      listed = '\n'.join(f'  {step}: {reason}' for step, reason in damaged.items())
      raise UserError(f'{self.folder}: no checkpoint can be read.\n{listed}\nTo begin again, give another --workdir.')
    for step, reason in damaged.items():
      place = self.folder / f'damaged-{step}'
      while place.exists():
        place = place.with_name(f'{place.name}-again')
      (self.folder / str(step)).rename(place)
      print(f'Checkpoint {step} cannot be read ({reason}): moved to {place.name}; going on from the one before.')
    self._manager.reload()
    return out and (TrainState(params=out['params'], ema=out.get('ema', ()), **out['rest']), out['meta'])

  def params(self, abstract_params, which: str | int = 'best', average: int = 1):
    """Parameters for evaluation (the moving average where the run keeps one) and their step.

    Args:
      abstract_params: their shapes and types; None takes them as they were written.
      which: 'best', 'latest' or a step; with `average` > 1 the mean over the last n steps up to it.
    """
    steps = self.steps()
    if not steps:
      raise UserError(f'{self.folder}: no checkpoint. Train first, or give the folder of another run.')
    step = {'best': self._manager.best_step, 'latest': self._manager.latest_step}.get(which, lambda: which)()
    if not str(step).isdigit() or int(step) not in steps:
      raise UserError(f"evaluate.checkpoint={which!r}: not in {self.folder}, which holds {steps}. Or 'best', 'latest'.")
    chosen = [s for s in steps if s <= int(step)][-average:]
    if len(chosen) < average:
      raise UserError(f'evaluate.average={average}, but {self.folder} holds the steps {steps}: set it to {len(chosen)} or less, or train with a larger train.keep_latest.')
    name = 'ema' if (self.folder / str(step) / 'ema').is_dir() else 'params'
    if abstract_params is None:
      abstract_params = ocp.StandardCheckpointer().metadata(self.folder / str(step) / name).item_metadata.tree
    read, trees = lambda step: self._read(step, {name: abstract_params}), []
    for s in chosen:
      out, reason = read(s)
      if out is None:
        good = [s for s in steps if read(s)[0] is not None] or 'none'
        raise UserError(f'{self.folder}/{s} cannot be read ({reason}). Steps that can: {good}; choose one with '
                        '--config.evaluate.checkpoint=STEP.')  # fmt: skip
      trees.append(out[name])
    return jax.tree.map(lambda *leaves: sum(leaf / len(trees) for leaf in leaves), *trees), int(step)

  def _read(self, step, items: dict) -> tuple:
    """(the items of a step and its meta, '') or (None, why they cannot be read). UserError: it is of another vocabulary."""
    # Onto the first local device, whatever devices wrote it.
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    place = lambda x: jax.ShapeDtypeStruct(jnp.shape(x), x.dtype, sharding=sharding)
    args = {name: ocp.args.StandardRestore(jax.tree.map(place, tree)) for name, tree in items.items()}
    try:
      meta = self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))['meta']
      if meta.get('vocabulary', self.vocabulary) == self.vocabulary:
        return {'meta': meta, **dict(self._manager.restore(step, args=ocp.args.Composite(**args)).items())}, ''
    except Exception as error:  # orbax and tensorstore raise nearly every kind on damaged files
      return None, (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    raise UserError(
      f'{self.folder.parent}/tokenizer.json is not the vocabulary that checkpoint {step} was trained with: its words would be others. '
      'Put back the tokenizer.json of this run.'
    )


def _items(state: TrainState) -> dict:
  """The trees of a step by the names that they have on disk."""
  rest = {'step': state.step, 'opt_state': state.opt_state, 'rng': state.rng}
  return {'params': state.params, 'rest': rest} | ({} if state.ema == () else {'ema': state.ema})


@contextlib.contextmanager
def _disk_errors(folder):
  """Turns a full disk into a message."""
  try:
    yield
  except Exception as error:  # orbax and tensorstore have their own kinds
    if getattr(error, 'errno', None) != errno.ENOSPC and not re.search('No space left|RESOURCE_EXHAUSTED', str(error)):
      raise
    raise UserError(
      f'no space left on the disk of {folder}: the newest checkpoint was not written, older ones are whole. '
      'Free some space and start the same command again: it goes on from the last one.'
    ) from None
