"""How a program runs on the devices: `STRATEGIES` maps the names of configs to classes with the same methods.

`devices` parts have the rows of a batch, of which this process loads those of `part` (its number, how many there are). Rows that do not
divide are filled up with zeros, whose weight is 0. All give the same numbers, but for dropout: 'pmap' draws for the rows of each device by
its own key, 'jit' and 'mesh' for the whole batch by one, so these two also agree with dropout on where nothing was filled up.
What a training state carries from step to step (`TrainState.carry`) has a row for each row of a batch, and lies where that row is.
Axes: B batch.
"""

import math
import re

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mmlm.parallel.axes import AXES, BATCH, DEVICES, Spread, shards, tracing_for
from mmlm.parallel.compiled import Step
from mmlm.parallel.rules import shardings
from mmlm.utils.choices import nearest
from mmlm.utils.errors import UserError

NO_MESH = f'expected sizes of {", ".join(AXES)} such as data=2,fsdp=4, of which one may be -1: the devices that are left'


def filled(batch: dict, multiple: int) -> dict:
  """A batch [B, ...] with zeros behind it, up to a multiple of rows."""
  missing = -_rows(batch) % multiple

  def fill(x):
    return np.concatenate([x, np.zeros((missing, *x.shape[1:]), x.dtype)])

  if missing:
    return jax.tree.map(fill, batch)
  return batch


def _rows(batch) -> int:
  return len(jax.tree.leaves(batch)[0])


def _merged(x):
  """[devices, B / devices, ...] -> [B, ...]"""
  return x.reshape(-1, *x.shape[2:])


def _carry(tree):
  """What a training state carries, () of one that carries nothing and of parameters."""
  carry = getattr(tree, 'carry', ())
  return carry if jax.tree.leaves(carry) else ()


class OneDevice:
  """jit, on the first device."""

  devices = 1
  part = (0, 1)

  def __init__(self):
    if jax.process_count() > 1:
      raise UserError(
        "parallel.strategy='jit' is one device, and there are several processes: choose 'pmap' or 'mesh'."
      )

  def replicate(self, tree):
    """Host or single-device tree -> what compiled functions take: all of it on every device."""
    return jax.device_put(tree, jax.local_devices()[0])

  place = replicate  # parameters or a training state; on a mesh divided by the rules

  def abstract(self, tree):
    """Shapes, types and, where they are needed to read it from disk, places of such a tree."""
    return jax.eval_shape(lambda: tree)

  def unreplicate(self, tree):
    """What compiled functions give -> one copy of it, to be saved or read."""
    return tree

  def step(self, fn, accumulate: int = 1) -> Step:
    """Compiles (state, batch) -> (state, metrics); the old state is donated. Metrics are equal on all devices."""
    return Step(
      lambda state: jax.jit(fn, donate_argnums=0), lambda batch: filled(batch, accumulate)
    )

  def per_example(self, fn):
    """Compiles (replicated, batch) -> tree of arrays with a leading batch axis."""
    return jax.jit(fn)


class Replicas:
  """pmap: every device has all parameters and its rows of the batch, gradients are summed."""

  def __init__(self):
    self.devices = jax.device_count()
    self.part = (jax.process_index(), jax.process_count())
    self._local = jax.local_device_count()
    self._alone = jax.process_count() == 1

    def over(devices, spec):
      return NamedSharding(jax.sharding.Mesh(np.array(devices), DEVICES), spec)

    self._divided = over(jax.local_devices(), P(DEVICES))
    self._whole = over(jax.devices(), P())

  def replicate(self, tree):
    stacked = jax.tree.map(
      lambda x: np.broadcast_to(x := _on_host(x), (self._local, *np.shape(x))), tree
    )
    if jax.tree.leaves(tree):
      return jax.pmap(lambda x: x)(stacked)
    return tree

  def place(self, tree):
    carry = _carry(tree)
    if carry:
      return self.replicate(tree._replace(carry=()))._replace(carry=self.shard(carry))
    return self.replicate(tree)

  def abstract(self, tree):
    if self._alone:
      return jax.eval_shape(lambda: tree)
    return jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self._whole), tree
    )

  def unreplicate(self, tree):
    first = jax.tree.map(lambda x: x[0], tree)
    if carry := _carry(tree):
      first = first._replace(carry=jax.tree.map(_merged, carry))
    # Processes save together what is an array of all of them.
    if self._alone:
      return first
    return jax.tree.map(lambda x: put(x, self._whole), first)

  def shard(self, batch: dict, accumulate: int = 1) -> dict:
    """[B, ...] -> [devices of this process, B / devices, ...]"""

    def divide(x):
      return x.reshape(self._local, -1, *x.shape[1:])

    return jax.device_put(
      jax.tree.map(divide, filled(batch, self._local * accumulate)), self._divided
    )

  def step(self, fn, accumulate: int = 1) -> Step:
    run = jax.pmap(fn, DEVICES, donate_argnums=0)

    def first(metrics):
      return jax.tree.map(lambda x: x[0], metrics)

    return Step(
      lambda state: run, lambda batch: self.shard(batch, accumulate), first, ahead=self._alone
    )

  def per_example(self, fn):
    if self._alone:
      run = jax.pmap(fn, DEVICES)
    else:  # every process reads the answers of all

      def gather(x):
        return jax.lax.all_gather(x, DEVICES)

      run = jax.pmap(
        lambda given, batch: jax.tree.map(gather, fn(given, batch)), DEVICES, out_axes=None
      )
    return lambda given, batch: unfilled(
      jax.tree.map(_merged, run(given, self.shard(batch))), _rows(batch), self.part[1]
    )


class Sharded:
  """A mesh with the axes data, fsdp and tensor: parameters and what follows them are divided by rules, examples over data and fsdp.

  Args:
    mesh: sizes of the axes, such as 'data=-1,fsdp=4'. Processes have neighbouring devices, and the last axis changes fastest: tensor and
      then fsdp stay inside a host where its devices suffice.
    rules: see parallel/rules.py.
    sequence: activations between the blocks of a Transformer are divided in time over tensor.
    devices: those of all processes.
  """

  def __init__(
    self,
    mesh: str = 'data=-1',
    rules: tuple = ('transformer',),
    sequence: bool = False,
    devices=None,
  ):
    if devices is None:
      devices = jax.devices()
    else:
      devices = devices
    self.mesh = jax.sharding.Mesh(np.reshape(devices, sizes_of(mesh, len(devices))), AXES)
    self.rules, self._spread, self.devices = rules, Spread(self.mesh, sequence), shards(self.mesh)
    self._divided, self._whole = NamedSharding(self.mesh, P(BATCH)), NamedSharding(self.mesh, P())
    mine = {
      rows[0].start or 0
      for rows in self._divided.addressable_devices_indices_map((self.devices,)).values()
    }
    self._local, self.part = (
      len(mine),
      (
        min(mine) // len(mine),
        self.devices // len(mine),
      ),
    )

  def replicate(self, tree):
    return jax.tree.map(lambda x: put(x, self._whole), tree)

  def shardings(self, tree):
    """Those of parameters or of a training state."""
    return shardings(self.mesh, self.rules, tree)

  def place(self, tree):
    return jax.tree.map(put, tree, self.shardings(tree))

  def abstract(self, tree):
    def shape(x, sharding):
      return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(shape, tree, self.shardings(tree))

  def unreplicate(self, tree):
    return tree

  def shard(self, batch: dict, accumulate: int = 1) -> dict:
    """[B, ...], divided over the devices."""
    return put_rows(filled(batch, self._local * accumulate), self._divided, self.part[1])

  def abstract_batch(self, batch: dict, accumulate: int = 1) -> dict:
    """Shapes, types and places of what `shard` gives."""

    def shape(x):
      return jax.ShapeDtypeStruct(
        (len(x) * self.part[1], *x.shape[1:]), x.dtype, sharding=self._divided
      )

    return jax.tree.map(shape, filled(batch, self._local * accumulate))

  def step(self, fn, accumulate: int = 1) -> Step:
    def program(state):
      placed = jax.tree.map(lambda x: x.sharding, state)

      def traced(state, batch):
        with tracing_for(self._spread._replace(params=placed.params)):
          return fn(state, batch)

      return jax.jit(traced, donate_argnums=0, out_shardings=(placed, self._whole))

    return Step(program, lambda batch: self.shard(batch, accumulate))

  def per_example(self, fn):
    """As under pmap every part of the batch is a program by itself, with all parameters but what 'tensor' divides: a search ends where
    its own rows have ended, and its cache never moves between devices.
    """
    one = jax.shard_map(
      fn,
      mesh=self.mesh,
      in_specs=(P(), P(BATCH)),
      out_specs=P(BATCH),
      axis_names={*BATCH},
      check_vma=False,
    )
    run = jax.jit(
      one, out_shardings=None if self._whole.is_fully_addressable else self._whole
    )  # every process reads all answers
    return lambda given, batch: unfilled(run(given, self.shard(batch)), _rows(batch), self.part[1])


def sizes_of(text: str, devices: int) -> tuple:
  """'data=2,fsdp=4' -> (2, 4, 1), the sizes of `AXES`; -1 is what is left of the devices."""
  sizes = dict.fromkeys(AXES, 1)
  for part in filter(None, text.replace(' ', '').split(',')):
    match = re.fullmatch(r'(\w+)=(-1|[1-9]\d*)', part)
    if not match or match[1] not in AXES:
      if match:
        hint = f' Nearest: {nearest(match[1], AXES)!r}.'
      else:
        hint = ''
      raise UserError(f'parallel.mesh={text!r}: {NO_MESH}, not {part!r}.{hint}')
    sizes[match[1]] = int(match[2])
  left = [axis for axis, size in sizes.items() if size == -1]
  given = math.prod(size for size in sizes.values() if size > 0)
  if len(left) > 1:
    raise UserError(f'parallel.mesh={text!r}: {NO_MESH}.')
  if devices % given or (not left and given != devices):
    raise UserError(
      f'parallel.mesh={text!r} is for {"multiples of " * bool(left)}{given} devices, and there are {devices}.'
    )
  return tuple(devices // given if size == -1 else size for size in sizes.values())


def put(x, sharding):
  """An array, on the host or on devices, with another sharding; every process gives the same values."""
  if sharding.is_fully_addressable or (isinstance(x, jax.Array) and not x.is_fully_addressable):
    return jax.device_put(x, sharding)
  host = np.asarray(x)
  return jax.make_array_from_callback(host.shape, sharding, lambda place: host[place])


def put_rows(batch: dict, sharding, parts: int):
  """The rows of this process, [B / parts, ...], as rows of arrays [B, ...] of all processes."""
  if sharding.is_fully_addressable:
    return jax.device_put(batch, sharding)

  def whole(x):
    return jax.make_array_from_process_local_data(
      sharding, np.asarray(x), (len(x) * parts, *x.shape[1:])
    )

  return jax.tree.map(whole, batch)


def unfilled(found, rows: int, parts: int):
  """Without the rows that were filled up at the end of each part."""

  def cut(x):
    if len(x) == rows * parts:
      return x
    return x.reshape(parts, -1, *x.shape[1:])[:, :rows].reshape(
      -1,
      *x.shape[1:],
    )

  return jax.tree.map(cut, found)


def _on_host(x):
  """An array of this process, or one that every process has all of."""
  return np.asarray(
    x.addressable_data(0) if isinstance(x, jax.Array) and not x.is_fully_addressable else x
  )


STRATEGIES = {'jit': OneDevice, 'pmap': Replicas, 'mesh': Sharded}


def Parallel(strategy: str = 'auto', **options):
  """strategy 'jit' (one device), 'pmap' (all devices), 'mesh' (all, with the options of `Sharded`), or 'auto' (pmap when there are several)."""
  if strategy not in ('auto', *STRATEGIES):
    raise UserError(
      f"parallel.strategy={strategy!r}: choose 'auto', 'jit' or 'pmap', or 'mesh' for parameters that are divided."
    )
  name = {'auto': 'pmap' if jax.device_count() > 1 else 'jit'}.get(strategy, strategy)
  return STRATEGIES[name](**options if name == 'mesh' else {})


def local_mesh() -> Sharded:
  """All devices of this process alone, for what it computes by itself."""
  return Sharded(devices=jax.local_devices())
