"""Checkpoints with orbax: the latest n and the best n, written in the background, restored with a fallback.

A step holds `params`, `ema` (when there is one), `rest` (step, optimizer state, random key) and `meta` (JSON).
"""

import errno
import pathlib

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from mmlm.errors import UserError
from mmlm.training.step import TrainState


def higher_is_better(metric: str) -> bool:
  return metric not in ('loss', 'perplexity')


class Checkpoints:
  """The folder `checkpoints/` of a run."""

  def __init__(self, folder, monitor: str = 'loss', keep_latest: int = 2, keep_best: int = 1):
    self.folder, self.monitor = pathlib.Path(folder).absolute(), monitor
    sign = 1 if higher_is_better(monitor) else -1
    best = lambda metrics: sign * metrics[monitor]
    policy = checkpoint_managers.AnyPreservationPolicy(
      [checkpoint_managers.LatestN(keep_latest), checkpoint_managers.BestN(get_metric_fn=best, n=keep_best)]
    )
    self._options = ocp.CheckpointManagerOptions(
      preservation_policy=policy, best_fn=best, best_mode='max', cleanup_tmp_directories=True
    )
    self._open()

  def _open(self):
    self._manager = ocp.CheckpointManager(self.folder, options=self._options)

  def steps(self) -> list[int]:
    return sorted(self._manager.all_steps())

  def save(self, state: TrainState, meta: dict, metrics: dict):
    """Starts to write a step; training may go on at once. A full disk is a UserError, older steps stay."""
    items = {'params': ocp.args.StandardSave(state.params), 'meta': ocp.args.JsonSave(meta)}
    items['rest'] = ocp.args.StandardSave({'step': state.step, 'opt_state': state.opt_state, 'rng': state.rng})
    if state.ema != ():
      items['ema'] = ocp.args.StandardSave(state.ema)
    with self._disk_errors():
      self._manager.save(int(state.step), args=ocp.args.Composite(**items), metrics={self.monitor: metrics[self.monitor]})

  def wait(self):
    with self._disk_errors():
      self._manager.wait_until_finished()

  def close(self):
    self.wait()
    self._manager.close()

  def _disk_errors(self):
    return _DiskErrors(self.folder)

  def restore(self, abstract: TrainState) -> tuple[TrainState, dict] | None:
    """The newest step that can be read, and its meta; None when there is none.

    Steps that cannot be read are moved aside to `damaged-<step>` and said so.
    """
    for step in reversed(self.steps()):
      try:
        items = {'params': abstract.params, 'rest': {'step': abstract.step, 'opt_state': abstract.opt_state, 'rng': abstract.rng}}
        if abstract.ema != ():
          items['ema'] = abstract.ema
        out = self._restore(step, items)
        return TrainState(params=out['params'], ema=out.get('ema', ()), **out['rest']), out['meta']
      except Exception as error:  # orbax and tensorstore raise nearly every kind on damaged files
        print(f'Checkpoint {step} cannot be read ({_first_line(error)}): moved to damaged-{step}, trying the one before.')
        self._manager.close()
        (self.folder / str(step)).rename(self.folder / f'damaged-{step}')
        self._open()
    return None

  def params(self, abstract_params, which: str | int = 'best', average: int = 1):
    """Parameters for evaluation (the moving average where the run keeps one) and their step.

    Args:
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
      raise UserError(f'evaluate.average={average}, but {self.folder} holds the steps {steps}: raise train.keep_latest.')
    name = 'ema' if (self.folder / str(step) / 'ema').is_dir() else 'params'
    trees = [self._params(s, name, abstract_params) for s in chosen]
    return jax.tree.map(lambda *leaves: sum(leaf / len(trees) for leaf in leaves), *trees), int(step)

  def _params(self, step, name, abstract):
    try:
      return self._restore(step, {name: abstract})[name]
    except Exception as error:
      others = [s for s in self.steps() if s != step]
      raise UserError(
        f'{self.folder}/{step} cannot be read ({_first_line(error)}). Other steps: {others}; choose one with '
        '--config.evaluate.checkpoint=STEP.'
      ) from None

  def _restore(self, step, items: dict) -> dict:
    # Onto the first local device, whatever devices wrote it.
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    place = lambda x: jax.ShapeDtypeStruct(jnp.shape(x), x.dtype, sharding=sharding)
    args = {name: ocp.args.StandardRestore(jax.tree.map(place, tree)) for name, tree in items.items()}
    return self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore(), **args))


class _DiskErrors:
  """Turns a full disk into a message."""

  def __init__(self, folder):
    self.folder = folder

  def __enter__(self):
    pass

  def __exit__(self, kind, error, trace):
    full = isinstance(error, OSError) and error.errno == errno.ENOSPC
    if full or (error is not None and ('No space left' in str(error) or 'RESOURCE_EXHAUSTED' in str(error))):
      raise UserError(
        f'no space left on the disk of {self.folder}: the newest checkpoint was not written, older ones are whole. '
        'Free some space and start the same command again: it goes on from the last one.'
      ) from None


def _first_line(error) -> str:
  return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
