"""How a program runs on the devices: `STRATEGIES` maps the names of configs to classes.

All have the methods of `Strategy`. All give the same numbers, but for dropout: 'pmap' draws by a
key for each device, 'jit' and 'mesh' by one for the whole batch, so these two also agree with
dropout on, if no example was added to fill the batch.

Axes: B batch.
"""

import math
import re
from collections.abc import Callable
from typing import Any, Protocol

import jax
import numpy as np
from jax import Array
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mmlm.parallel.axes import AXES, BATCH, DEVICES, Spread, shards, tracing_for
from mmlm.parallel.compiled import Step
from mmlm.parallel.rules import shardings
from mmlm.utils.choices import nearest
from mmlm.utils.errors import UserError

MESH_FORMAT = (
  f'expected sizes of {", ".join(AXES)} such as data=2,fsdp=4, of which one may be -1: the '
  'remaining devices'
)


class Strategy(Protocol):
  """Places arrays on the devices and compiles functions for them.

  A batch that does not divide is filled with zeros, whose weight is 0. `TrainState.carry`, what a
  model carries from step to step, has an entry for each example of a batch, on the device of that
  example.
  """

  devices: int  # parts that a batch is divided into
  part: tuple[int, int]  # the number of the part that this process loads, and how many there are

  def replicate(self, tree: Any) -> Any:
    """Places arrays of the host or of one device on every device."""
    ...

  def place(self, tree: Any) -> Any:
    """Places parameters or a training state; on a mesh divided by the rules."""
    ...

  def abstract(self, tree: Any) -> Any:
    """Returns shapes, types and, where reading from disk needs them, shardings of such a tree."""
    ...

  def unreplicate(self, tree: Any) -> Any:
    """Returns one copy of the result of a compiled function, to be saved or read."""
    ...

  def step(self, fn: Callable, accumulate: int = 1) -> Step:
    """Compiles (state, batch) -> (state, metrics); metrics are equal on all devices."""
    ...

  def per_example(self, fn: Callable) -> Callable:
    """Compiles (replicated, batch) -> tree of arrays with a leading batch axis."""
    ...


def filled(batch: dict, multiple: int) -> dict:
  """Returns a batch with zeros appended, up to a multiple of examples."""
  missing = -_batch_size(batch) % multiple
  if not missing:
    return batch

  def fill(x: np.ndarray) -> np.ndarray:
    return np.concatenate([x, np.zeros((missing, *x.shape[1:]), x.dtype)])

  return jax.tree.map(fill, batch)


def unfilled(
  outputs: Any,
  batch_size: int,
  parts: int,
) -> Any:
  """Removes the examples that were appended to each part of a batch."""

  def cut(x: Any) -> Any:
    if len(x) == batch_size * parts:
      return x
    by_part = x.reshape(parts, -1, *x.shape[1:])
    return by_part[:, :batch_size].reshape(-1, *x.shape[1:])

  return jax.tree.map(cut, outputs)


def _batch_size(batch: dict) -> int:
  return len(jax.tree.leaves(batch)[0])


def _merge_devices(x: Any) -> Any:
  """[devices, B / devices, ...] -> [B, ...]"""
  return x.reshape(-1, *x.shape[2:])


def _carry(tree: Any) -> Any:
  """Returns what a training state carries; () if it carries nothing, and for parameters."""
  carry = getattr(tree, 'carry', ())
  if jax.tree.leaves(carry):
    return carry
  return ()


class OneDevice:
  """jit, on the first device."""

  devices = 1
  part = (0, 1)

  def __init__(self):
    if jax.process_count() > 1:
      raise UserError(
        "parallel.strategy='jit' is one device, and there are several processes: choose 'pmap' or "
        "'mesh'."
      )

  def replicate(self, tree: Any) -> Any:
    return jax.device_put(tree, jax.local_devices()[0])

  place = replicate

  def abstract(self, tree: Any) -> Any:
    return jax.eval_shape(lambda: tree)

  def unreplicate(self, tree: Any) -> Any:
    return tree

  def step(self, fn: Callable, accumulate: int = 1) -> Step:
    def program(state: Any) -> Callable:
      return jax.jit(fn, donate_argnums=0)

    return Step(program, lambda batch: filled(batch, accumulate))

  def per_example(self, fn: Callable) -> Callable:
    return jax.jit(fn)


class Replicas:
  """pmap: every device has all parameters and its part of the batch; gradients are summed."""

  def __init__(self):
    self.devices = jax.device_count()
    self.part = (jax.process_index(), jax.process_count())
    self._local_devices = jax.local_device_count()
    self._single_process = jax.process_count() == 1
    self._divided = _over(jax.local_devices(), P(DEVICES))
    self._whole = _over(jax.devices(), P())

  def replicate(self, tree: Any) -> Any:
    if not jax.tree.leaves(tree):
      return tree

    def stack(x: Any) -> np.ndarray:
      x = _on_host(x)
      return np.broadcast_to(x, (self._local_devices, *np.shape(x)))

    return jax.pmap(lambda x: x)(jax.tree.map(stack, tree))

  def place(self, tree: Any) -> Any:
    carry = _carry(tree)
    if carry:
      return self.replicate(tree._replace(carry=()))._replace(carry=self.shard(carry))
    return self.replicate(tree)

  def abstract(self, tree: Any) -> Any:
    if self._single_process:
      return jax.eval_shape(lambda: tree)

    def shape(x: Any) -> jax.ShapeDtypeStruct:
      return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self._whole)

    return jax.tree.map(shape, tree)

  def unreplicate(self, tree: Any) -> Any:
    first = jax.tree.map(lambda x: x[0], tree)
    carry = _carry(tree)
    if carry:
      first = first._replace(carry=jax.tree.map(_merge_devices, carry))
    if self._single_process:
      return first
    # Processes save together an array that all of them have.
    return jax.tree.map(lambda x: put(x, self._whole), first)

  def shard(self, batch: dict, accumulate: int = 1) -> dict:
    """[B, ...] -> [devices of this process, B / devices, ...]"""
    full = filled(batch, self._local_devices * accumulate)

    def divide(x: np.ndarray) -> np.ndarray:
      return x.reshape(self._local_devices, -1, *x.shape[1:])

    return jax.device_put(jax.tree.map(divide, full), self._divided)

  def step(self, fn: Callable, accumulate: int = 1) -> Step:
    run = jax.pmap(fn, DEVICES, donate_argnums=0)

    def first(metrics: Any) -> Any:
      return jax.tree.map(lambda x: x[0], metrics)

    def prepare(batch: dict) -> dict:
      return self.shard(batch, accumulate)

    return Step(lambda state: run, prepare, first, ahead=self._single_process)

  def per_example(self, fn: Callable) -> Callable:
    def gathered(arrays: Any, batch: dict) -> Any:
      outputs = fn(arrays, batch)
      return jax.tree.map(lambda x: jax.lax.all_gather(x, DEVICES), outputs)

    if self._single_process:
      run = jax.pmap(fn, DEVICES)
    else:  # every process reads the outputs of all
      run = jax.pmap(gathered, DEVICES, out_axes=None)

    def apply(arrays: Any, batch: dict) -> Any:
      outputs = jax.tree.map(_merge_devices, run(arrays, self.shard(batch)))
      return unfilled(outputs, _batch_size(batch), self.part[1])

    return apply


def _over(devices: list, spec: P) -> NamedSharding:
  return NamedSharding(jax.sharding.Mesh(np.array(devices), DEVICES), spec)


class Sharded:
  """A mesh with the axes data, fsdp and tensor.

  Parameters and what follows them are divided by rules, examples over data and fsdp.

  Args:
    mesh: sizes of the axes, such as 'data=-1,fsdp=4'. Devices of a process are neighbours, and the
      last axis changes fastest: tensor, then fsdp stay inside a host if its devices suffice.
    rules: see parallel/rules.py.
    sequence: activations between the blocks of a Transformer are divided in time over tensor.
    devices: of all processes.
  """

  def __init__(
    self,
    mesh: str = 'data=-1',
    rules: tuple = ('transformer',),
    sequence: bool = False,
    devices: list | None = None,
  ):
    if devices is None:
      devices = jax.devices()
    self.mesh = jax.sharding.Mesh(np.reshape(devices, sizes_of(mesh, len(devices))), AXES)
    self.rules = rules
    self.devices = shards(self.mesh)
    self._spread = Spread(self.mesh, sequence)
    self._divided = NamedSharding(self.mesh, P(BATCH))
    self._whole = NamedSharding(self.mesh, P())
    indices: Any = self._divided.addressable_devices_indices_map((self.devices,)).values()
    local_parts = {slices[0].start or 0 for slices in indices}
    self._local_parts = len(local_parts)
    number = min(local_parts) // self._local_parts
    self.part = (number, self.devices // self._local_parts)

  def replicate(self, tree: Any) -> Any:
    return jax.tree.map(lambda x: put(x, self._whole), tree)

  def shardings(self, tree: Any) -> Any:
    """Returns the shardings of parameters or of a training state."""
    return shardings(self.mesh, self.rules, tree)

  def place(self, tree: Any) -> Any:
    return jax.tree.map(put, tree, self.shardings(tree))

  def abstract(self, tree: Any) -> Any:
    def shape(x: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
      return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(shape, tree, self.shardings(tree))

  def unreplicate(self, tree: Any) -> Any:
    return tree

  def shard(self, batch: dict, accumulate: int = 1) -> dict:
    """Divides [B, ...] over the devices."""
    full = filled(batch, self._local_parts * accumulate)
    return put_examples(full, self._divided, self.part[1])

  def abstract_batch(self, batch: dict, accumulate: int = 1) -> dict:
    """Returns shapes, types and shardings of the result of `shard`."""

    def shape(x: np.ndarray) -> jax.ShapeDtypeStruct:
      global_shape = (len(x) * self.part[1], *x.shape[1:])
      return jax.ShapeDtypeStruct(global_shape, x.dtype, sharding=self._divided)

    return jax.tree.map(shape, filled(batch, self._local_parts * accumulate))

  def step(self, fn: Callable, accumulate: int = 1) -> Step:
    def program(state: Any) -> Callable:
      placed = jax.tree.map(lambda x: x.sharding, state)
      spread = self._spread._replace(params=placed.params)

      def traced(state: Any, batch: dict) -> tuple[Any, Any]:
        with tracing_for(spread):
          return fn(state, batch)

      return jax.jit(traced, donate_argnums=0, out_shardings=(placed, self._whole))

    return Step(program, lambda batch: self.shard(batch, accumulate))

  def per_example(self, fn: Callable) -> Callable:
    """Compiles (replicated, batch) -> tree of arrays with a leading batch axis.

    As under pmap every part of the batch is a program by itself, with all parameters but what
    'tensor' divides: a search ends where its own examples end, and its cache is never moved.
    """
    one = jax.shard_map(
      fn,
      mesh=self.mesh,
      in_specs=(P(), P(BATCH)),
      out_specs=P(BATCH),
      axis_names={*BATCH},
      check_vma=False,
    )
    # Of several processes every one reads all outputs.
    out_shardings = None if self._whole.is_fully_addressable else self._whole
    run = jax.jit(one, out_shardings=out_shardings)

    def apply(arrays: Any, batch: dict) -> Any:
      outputs = run(arrays, self.shard(batch))
      return unfilled(outputs, _batch_size(batch), self.part[1])

    return apply


def sizes_of(text: str, devices: int) -> tuple[int, ...]:
  """Returns the sizes of `AXES`: 'data=2,fsdp=4' -> (2, 4, 1); -1 = the remaining devices."""
  sizes: dict[str, int] = dict.fromkeys(AXES, 1)
  for part in filter(None, text.replace(' ', '').split(',')):
    axis, size = _axis_size(text, part)
    sizes[axis] = size
  open_axes = [axis for axis, size in sizes.items() if size == -1]
  if len(open_axes) > 1:
    raise UserError(f'parallel.mesh={text!r}: {MESH_FORMAT}.')
  product = math.prod(size for size in sizes.values() if size > 0)
  if devices % product or (not open_axes and product != devices):
    multiples = 'multiples of ' if open_axes else ''
    raise UserError(
      f'parallel.mesh={text!r} is for {multiples}{product} devices, and there are {devices}.'
    )
  for axis in open_axes:
    sizes[axis] = devices // product
  return tuple(sizes.values())


def _axis_size(text: str, part: str) -> tuple[str, int]:
  """Parses a part such as 'fsdp=4' of the sizes `text`."""
  match = re.fullmatch(r'(\w+)=(-1|[1-9]\d*)', part)
  if match is None:
    raise UserError(f'parallel.mesh={text!r}: {MESH_FORMAT}, not {part!r}.')
  axis, size = match.groups()
  if axis not in AXES:
    hint = f'Nearest: {nearest(axis, AXES)!r}.'
    raise UserError(f'parallel.mesh={text!r}: {MESH_FORMAT}, not {part!r}. {hint}')
  return axis, int(size)


def put(x: Any, sharding: NamedSharding) -> Array:
  """Places an array of the host or of devices; every process passes the same values."""
  is_distributed = isinstance(x, Array) and not x.is_fully_addressable
  if sharding.is_fully_addressable or is_distributed:
    return jax.device_put(x, sharding)
  host = np.asarray(x)
  return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def put_examples(
  batch: dict,
  sharding: NamedSharding,
  parts: int,
) -> dict:
  """Makes arrays [B, ...] of all processes from the examples of each, [B / parts, ...]."""
  if sharding.is_fully_addressable:
    return jax.device_put(batch, sharding)

  def whole(x: np.ndarray) -> Array:
    shape = (len(x) * parts, *x.shape[1:])
    return jax.make_array_from_process_local_data(sharding, np.asarray(x), shape)

  return jax.tree.map(whole, batch)


def _on_host(x: Any) -> np.ndarray:
  """Copies an array of this process, or one that every process has whole."""
  if isinstance(x, Array) and not x.is_fully_addressable:
    return np.asarray(x.addressable_data(0))
  return np.asarray(x)


STRATEGIES = {'jit': OneDevice, 'pmap': Replicas, 'mesh': Sharded}


def Parallel(strategy: str = 'auto', **options: Any) -> Strategy:
  """Builds a strategy by name; 'auto' is 'pmap' with several devices, else 'jit'.

  Args:
    options: of `Sharded`, for 'mesh'.
  """
  if strategy not in ('auto', *STRATEGIES):
    raise UserError(
      f"parallel.strategy={strategy!r}: choose 'auto', 'jit' or 'pmap', or 'mesh' for parameters "
      'that are divided.'
    )
  if strategy == 'mesh':
    return Sharded(**options)
  if strategy == 'auto':
    strategy = 'pmap' if jax.device_count() > 1 else 'jit'
  return STRATEGIES[strategy]()


def local_mesh() -> Sharded:
  """Returns a mesh of the devices of this process, for what it computes by itself."""
  return Sharded(devices=jax.local_devices())
