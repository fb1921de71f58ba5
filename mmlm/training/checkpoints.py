"""Checkpoints with orbax: the latest n and the best n, written in the background.

A step holds `params`, `ema` (if there is one), `rest` (step, optimizer state, random key, what is
carried between steps), `meta` (JSON) and checksums of all of these (checksums.py). It gets its name
when it is complete, and is renamed before it is removed: no partial step is ever visible.
"""

import contextlib
import math
import pathlib
import shutil
import sys
import threading
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax import Array
from orbax.checkpoint import checkpoint_managers

from mmlm.training.checksums import SummedPath, damage
from mmlm.training.step import TrainState
from mmlm.utils.errors import UserError, disk_errors
from mmlm.utils.pytree import flat, misfits

REMOVED = '.removed'  # folder for steps to be deleted
DISK_FULL = 'the newest checkpoint was not written, older ones are whole'


class _Unreadable(Exception):
  """A step cannot be read; the text says why."""


class _Manager(ocp.CheckpointManager):
  """Orbax's manager, for which a step with a damaged file of metrics is never the best."""

  def metrics(self, step: int) -> Any:
    reason = damage(str(self.directory / str(step)), {'metrics'})
    if reason:
      print(f'WARNING: {self.directory}/{step}: {reason}.', file=sys.stderr)
      return None
    try:
      return super().metrics(step)
    except ValueError:  # not JSON, of a step without checksums
      return None


class Checkpoints:
  """The folder `checkpoints/` of a run.

  Args:
    monitor: the score by which the best steps are chosen.
    writing: creates the folder and removes what a killed writer left: for the training alone.
    vocabulary: fingerprint of the tokenizer; a step that was trained with another is an error.
    higher_is_better: direction of `monitor`.
  """

  def __init__(
    self,
    folder: str | pathlib.Path,
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
    self.writing = writing
    self.sign = 1 if higher_is_better else -1
    if writing:
      shutil.rmtree(self.folder / REMOVED, ignore_errors=True)
    self._manager = _Manager(self.folder, options=self._options(keep_latest, keep_best))

  def _options(self, keep_latest: int, keep_best: int) -> ocp.CheckpointManagerOptions:
    def signed_score(metrics: dict[str, float]) -> float:
      return self.sign * metrics[self.monitor]

    best = checkpoint_managers.BestN(
      get_metric_fn=signed_score, n=keep_best, keep_checkpoints_without_metrics=False
    )
    latest = checkpoint_managers.LatestN(keep_latest)
    return ocp.CheckpointManagerOptions(
      preservation_policy=checkpoint_managers.AnyPreservationPolicy([latest, best]),
      best_fn=signed_score,
      best_mode='max',
      create=self.writing,
      cleanup_tmp_directories=self.writing,
      temporary_path_class=SummedPath,
      todelete_subdir=REMOVED,
    )

  def steps(self) -> list[int]:
    """Returns the steps in the folder, in order."""
    return sorted(self._manager.all_steps())

  def save(
    self,
    state: TrainState,
    meta: dict,
    metrics: dict[str, float],
  ) -> None:
    """Starts to write a step; training may continue at once.

    A step whose `metrics` lack the monitored one, or have no finite value, is never the best.

    Raises:
      UserError: a full disk; older steps are not affected.
    """
    items = {name: ocp.args.StandardSave(tree) for name, tree in _items(state).items()}
    score = metrics.get(self.monitor, math.nan)
    if not math.isfinite(score):
      score = -self.sign * math.inf
    meta_item = ocp.args.JsonSave(meta | {'vocabulary': self.vocabulary})
    with disk_errors(self.folder, DISK_FULL):
      args = ocp.args.Composite(meta=meta_item, **items)
      self._manager.save(int(state.step), args=args, metrics={self.monitor: score})
    threading.Thread(target=self._clear).start()

  def _clear(self) -> None:
    """Deletes removed steps; their folder stays, since another step may be moved there."""
    for step in (self.folder / REMOVED).glob('*'):
      shutil.rmtree(step, ignore_errors=True)

  def wait(self) -> None:
    """Waits until the last step is written."""
    with disk_errors(self.folder, DISK_FULL):
      self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits, and releases the folder."""
    self.wait()
    self._manager.close()
    if self.writing:
      shutil.rmtree(self.folder / REMOVED, ignore_errors=True)

  def restore(self, abstract: TrainState) -> tuple[TrainState, dict] | None:
    """Returns the newest step that can be read, and its meta; None if there is no step.

    Newer steps that cannot be read, or whose checksums differ, are renamed to `damaged-<step>`.

    Raises:
      UserError: no step can be read, or one holds arrays of other shapes or types; nothing is
        renamed then.
    """
    contents = None
    damaged = {}
    for step in reversed(self.steps()):
      try:
        contents = self._read(step, _items(abstract))
        break
      except _Unreadable as error:
        damaged[step] = str(error)
    if contents is None and damaged:
      reasons = '\n'.join(f'  {step}: {reason}' for step, reason in damaged.items())
      raise UserError(
        f'{self.folder}: no checkpoint can be read.\n{reasons}\n'
        'To begin again, give another --workdir.'
      )
    for step, reason in damaged.items():
      self._move_aside(step, reason)
    self._manager.reload()
    if contents is None:
      return None
    state = TrainState(params=contents['params'], ema=contents.get('ema', ()), **contents['rest'])
    return state, contents['meta']

  def _move_aside(self, step: int, reason: str) -> None:
    path = self.folder / f'damaged-{step}'
    while path.exists():
      path = path.with_name(f'{path.name}-again')
    (self.folder / str(step)).rename(path)
    print(
      f'Checkpoint {step} cannot be read ({reason}): moved to {path.name}; '
      'resuming from the one before.'
    )

  def params(
    self,
    abstract_params: Any,
    which: str | int = 'best',
    average: int = 1,
  ) -> tuple[Any, int]:
    """Returns parameters for evaluation, averaged if the run averages them, and their step.

    Args:
      abstract_params: their shapes and types; None takes them as they were written.
      which: 'best', 'latest' or a step; with `average` > 1 the mean over the last n steps up to it.
    """
    step = self._chosen_step(which)
    steps = self.steps()
    chosen = [s for s in steps if s <= step][-average:]
    if len(chosen) < average:
      raise UserError(
        f'evaluate.average={average}, but {self.folder} holds the steps {steps}: set it to '
        f'{len(chosen)} or less, or train with a larger train.keep_latest.'
      )
    name = 'params'
    if (self.folder / str(step) / 'ema').is_dir():
      name = 'ema'
    items = {name: abstract_params}
    trees = []
    for s in chosen:
      try:
        trees.append(self._read(s, items)[name])
      except _Unreadable as error:
        raise UserError(
          f'{self.folder}/{s} cannot be read ({error}). Steps that can: '
          f'{self._readable_steps(items) or "none"}; choose one with '
          '--config.evaluate.checkpoint=STEP.'
        ) from None

    def mean(*leaves: Array) -> Any:
      return sum(leaf / len(trees) for leaf in leaves)

    return jax.tree.map(mean, *trees), step

  def _chosen_step(self, which: str | int) -> int:
    steps = self.steps()
    if not steps:
      raise UserError(
        f'{self.folder}: no checkpoint. Train first, or give the folder of another run.'
      )
    step: Any = which
    if which == 'best':
      step = self._manager.best_step()
    elif which == 'latest':
      step = self._manager.latest_step()
    if not str(step).isdigit() or int(step) not in steps:
      raise UserError(
        f'evaluate.checkpoint={which!r}: not in {self.folder}, which holds {steps}. '
        "Or 'best', 'latest'."
      )
    return int(step)

  def _readable_steps(self, items: dict[str, Any]) -> list[int]:
    readable = []
    for step in self.steps():
      with contextlib.suppress(_Unreadable):
        self._read(step, items)
        readable.append(step)
    return readable

  def _read(self, step: int, items: dict[str, Any]) -> dict[str, Any]:
    """Reads items of a step and its meta.

    Args:
      items: {name: tree of shapes and types, or None for any}.

    Raises:
      _Unreadable: it is damaged.
      UserError: it is of another vocabulary, or its arrays are not those of `items`.
    """
    folder = self.folder / str(step)
    try:
      reason = damage(folder, {'meta', 'metrics', *items})
      if reason:
        raise _Unreadable(reason)
      meta_args = ocp.args.Composite(meta=ocp.args.JsonRestore())
      meta = self._manager.restore(step, args=meta_args)['meta']
      written = {name: _metadata(folder / name) for name in items}
      abstract = {name: written[name] if tree is None else tree for name, tree in items.items()}
      same_vocabulary = meta.get('vocabulary', self.vocabulary) == self.vocabulary
      unfit = misfits(flat(written), flat(abstract))
      if same_vocabulary and not unfit:
        return {'meta': meta, **self._restore_arrays(step, abstract)}
    except _Unreadable:
      raise
    except Exception as error:  # orbax and tensorstore raise nearly every kind on damaged files
      first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
      raise _Unreadable(first_line[:200]) from None
    if same_vocabulary:
      title = (
        f'{self.folder}/{step} holds other arrays than this config has: {len(unfit)} do not fit '
        '(there -> here).'
      )
      advice = 'Put back the config, and the code, of this run.'
      raise UserError('\n  '.join([title, *unfit[:20], advice]))
    raise UserError(
      f'{self.folder.parent}/tokenizer.json is not the vocabulary that checkpoint {step} was '
      'trained with: its words would be others. Put back the tokenizer.json of this run.'
    )

  def _restore_arrays(self, step: int, abstract: dict[str, Any]) -> dict[str, Any]:
    args = {}
    for name, tree in abstract.items():
      args[name] = ocp.args.StandardRestore(jax.tree.map(_with_sharding, tree))
    restored = self._manager.restore(step, args=ocp.args.Composite(**args))
    return dict(restored.items())


def _metadata(folder: pathlib.Path) -> Any:
  """Returns the shapes and types of an item on disk."""
  metadata: Any = ocp.StandardCheckpointer().metadata(folder)
  return metadata.item_metadata.tree


def _with_sharding(x: Any) -> jax.ShapeDtypeStruct:
  """Returns shape and type with the sharding of a mesh, or for the first local device.

  It does not matter which devices wrote the array.
  """
  sharding = getattr(x, 'sharding', None)
  if not isinstance(sharding, jax.sharding.NamedSharding):
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  return jax.ShapeDtypeStruct(jnp.shape(x), x.dtype, sharding=sharding)


def _items(state: TrainState) -> dict[str, Any]:
  """Returns the trees of a step by the names that they have on disk."""
  rest = {'step': state.step, 'opt_state': state.opt_state, 'rng': state.rng}
  if jax.tree.leaves(state.carry):
    rest['carry'] = state.carry
  if jax.tree.leaves(state.averaged):
    rest['averaged'] = state.averaged
  items = {'params': state.params, 'rest': rest}
  if state.ema != ():
    items['ema'] = state.ema
  return items
