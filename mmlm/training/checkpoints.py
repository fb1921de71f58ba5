"""Checkpoints with orbax: the latest n and the best n, written in the background, restored with a fallback.

A step holds `params`, `ema` (when there is one), `rest` (step, optimizer state, random key, what is carried between steps), `meta` (JSON)
and checksums of all of these (checksums.py). It gets its name when it is whole, and is renamed before it is removed: no step is ever
seen in part.
"""

import math
import pathlib
import shutil
import sys
import threading

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from mmlm.training.checksums import SummedPath, damage
from mmlm.training.step import TrainState
from mmlm.utils.errors import UserError, disk_errors
from mmlm.utils.pytree import flat, misfits

REMOVED = '.removed'  # where a step goes that is no longer kept
FULL = 'the newest checkpoint was not written, older ones are whole'


class _Manager(ocp.CheckpointManager):
  """Orbax's, which a damaged file of metrics does not stop: its step is never the best."""

  def metrics(self, step):
    if wrong := damage(self.directory / str(step), {'metrics'}):
      print(f'WARNING: {self.directory}/{step}: {wrong}.', file=sys.stderr)
      return None
    try:
      return super().metrics(step)
    except ValueError:  # not text, or not JSON, of a step that is older than checksums
      return None


class Checkpoints:
  """The folder `checkpoints/` of a run; only the training (`writing`) makes it and clears what a killed writer left.

  Args:
    monitor: the score by which the best steps are chosen, and `higher_is_better`, its direction.
    vocabulary: the fingerprint of the tokenizer; a step that was trained with another is refused.
  """

  def __init__(
    self,
    folder,
    monitor: str = 'loss',
    keep_latest: int = 2,
    keep_best: int = 1,
    writing: bool = True,
    vocabulary: str = '',
    *,
    higher_is_better: bool,
  ):
    self.folder = pathlib.Path(folder).absolute()
    self.monitor = monitor
    self.vocabulary = vocabulary
    self.sign = 1 if higher_is_better else -1

    def best(metrics):
      return self.sign * metrics[monitor]

    bests = checkpoint_managers.BestN(
      get_metric_fn=best, n=keep_best, keep_checkpoints_without_metrics=False
    )
    kept = [checkpoint_managers.LatestN(keep_latest), bests]
    options = ocp.CheckpointManagerOptions(
      preservation_policy=checkpoint_managers.AnyPreservationPolicy(kept),
      best_fn=best,
      best_mode='max',
      create=writing,
      cleanup_tmp_directories=writing,
      temporary_path_class=SummedPath,
      todelete_subdir=REMOVED,
    )
    self.writing = writing
    if writing:
      shutil.rmtree(self.folder / REMOVED, ignore_errors=True)
    self._manager = _Manager(self.folder, options=options)

  def steps(self) -> list[int]:
    return sorted(self._manager.all_steps())

  def save(self, state: TrainState, meta: dict, metrics: dict):
    """Starts to write a step; training may go on at once. A full disk is a UserError, older steps stay.

    A step whose `metrics` lack the monitored one, or hold no finite value, is never the best.
    """
    items = {name: ocp.args.StandardSave(tree) for name, tree in _items(state).items()}
    value = metrics.get(self.monitor, math.nan)
    if math.isfinite(value):
      value = value
    else:
      value = -self.sign * math.inf
    with disk_errors(self.folder, FULL):
      args = ocp.args.Composite(
        meta=ocp.args.JsonSave(meta | {'vocabulary': self.vocabulary}), **items
      )
      self._manager.save(int(state.step), args=args, metrics={self.monitor: value})
    threading.Thread(target=self._clear).start()

  def _clear(self):
    """Removes what is no longer kept; its folder stays, another step may be on the way there."""
    for step in (self.folder / REMOVED).glob('*'):
      shutil.rmtree(step, ignore_errors=True)

  def wait(self):
    """Waits until the last step is written."""
    with disk_errors(self.folder, FULL):
      self._manager.wait_until_finished()

  def close(self):
    self.wait()
    self._manager.close()
    if self.writing:
      shutil.rmtree(self.folder / REMOVED, ignore_errors=True)

  def restore(self, abstract: TrainState) -> tuple[TrainState, dict] | None:
    """The newest step that can be read, and its meta; None when there is no step.

    Newer steps that cannot be read, or whose checksums do not fit, are moved aside to `damaged-<step>` and said so.

    Raises:
      UserError: there are steps, and none can be read, or one holds arrays of other shapes or types; nothing is moved then.
    """
    out = None
    damaged = {}
    for step in reversed(self.steps()):
      out, reason = self._read(step, _items(abstract))
      if out is not None:
        break
      damaged[step] = reason
    if out is None and damaged:
      listed = '\n'.join(f'  {step}: {reason}' for step, reason in damaged.items())
      raise UserError(
        f'{self.folder}: no checkpoint can be read.\n{listed}\nTo begin again, give another --workdir.'
      )
    for step, reason in damaged.items():
      place = self.folder / f'damaged-{step}'
      while place.exists():
        place = place.with_name(f'{place.name}-again')
      (self.folder / str(step)).rename(place)
      print(
        f'Checkpoint {step} cannot be read ({reason}): moved to {place.name}; going on from the one before.'
      )
    self._manager.reload()
    return out and (
      TrainState(params=out['params'], ema=out.get('ema', ()), **out['rest']),
      out['meta'],
    )

  def params(self, abstract_params, which: str | int = 'best', average: int = 1):
    """Parameters for evaluation (the moving average where the run keeps one) and their step.

    Args:
      abstract_params: their shapes and types; None takes them as they were written.
      which: 'best', 'latest' or a step; with `average` > 1 the mean over the last n steps up to it.
    """
    steps = self.steps()
    if not steps:
      raise UserError(
        f'{self.folder}: no checkpoint. Train first, or give the folder of another run.'
      )
    step = {'best': self._manager.best_step, 'latest': self._manager.latest_step}.get(
      which, lambda: which
    )()
    if not str(step).isdigit() or int(step) not in steps:
      raise UserError(
        f"evaluate.checkpoint={which!r}: not in {self.folder}, which holds {steps}. Or 'best', 'latest'."
      )
    chosen = [s for s in steps if s <= int(step)][-average:]
    if len(chosen) < average:
      raise UserError(
        f'evaluate.average={average}, but {self.folder} holds the steps {steps}: set it to {len(chosen)} or less, or train with a larger train.keep_latest.'
      )
    if (self.folder / str(step) / 'ema').is_dir():
      name = 'ema'
    else:
      name = 'params'

    def read(step):
      return self._read(step, {name: abstract_params})

    trees = []
    for s in chosen:
      out, reason = read(s)
      if out is None:
        good = [s for s in steps if read(s)[0] is not None] or 'none'
        raise UserError(
          f'{self.folder}/{s} cannot be read ({reason}). Steps that can: {good}; choose one with '
          '--config.evaluate.checkpoint=STEP.'
        )
      trees.append(out[name])
    return jax.tree.map(
      lambda *leaves: sum(leaf / len(trees) for leaf in leaves),
      *trees,
    ), int(step)

  def _read(self, step, items: dict) -> tuple:
    """(the items of a step and its meta, '') or (None, why they cannot be read). `items`: {name: shapes and types, or None for any}.

    UserError: it is of another vocabulary, or its arrays are not those of `items`.
    """
    # Onto the first local device, whatever devices wrote it, or where a mesh has it.
    first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def placed(x):
      if isinstance(getattr(x, 'sharding', None), jax.sharding.NamedSharding):
        return x.sharding
      return None

    def place(x):
      return jax.ShapeDtypeStruct(jnp.shape(x), x.dtype, sharding=placed(x) or first)

    try:
      if wrong := damage(self.folder / str(step), {'meta', 'metrics', *items}):
        return None, wrong
      meta = self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))[
        'meta'
      ]
      written = {}
      for name in items:
        written[name] = (
          ocp.StandardCheckpointer().metadata(self.folder / str(step) / name).item_metadata.tree
        )
      items = {name: written[name] if tree is None else tree for name, tree in items.items()}
      same = meta.get('vocabulary', self.vocabulary) == self.vocabulary
      unfit = misfits(flat(written), flat(items))
      if same and not unfit:
        args = {
          name: ocp.args.StandardRestore(jax.tree.map(place, tree)) for name, tree in items.items()
        }
        return {
          'meta': meta,
          **dict(self._manager.restore(step, args=ocp.args.Composite(**args)).items()),
        }, ''
    except Exception as error:  # orbax and tensorstore raise nearly every kind on damaged files
      return None, (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    if same:
      raise UserError(
        '\n  '.join(
          [
            f'{self.folder}/{step} holds other arrays than this config has: {len(unfit)} do not fit (there -> here).',
            *unfit[:20],
            'Put back the config, and the code, of this run.',
          ]
        )
      )
    raise UserError(
      f'{self.folder.parent}/tokenizer.json is not the vocabulary that checkpoint {step} was trained with: its words would be others. '
      'Put back the tokenizer.json of this run.'
    )


def _items(state: TrainState) -> dict:
  """The trees of a step by the names that they have on disk."""
  rest = {'step': state.step, 'opt_state': state.opt_state, 'rng': state.rng}
  rest |= {
    name: part
    for name, part in (('carry', state.carry), ('averaged', state.averaged))
    if jax.tree.leaves(part)
  }
  return {'params': state.params, 'rest': rest} | ({} if state.ema == () else {'ema': state.ema})
