"""Operations of a function that runs on several devices: sums, random keys, sharding constraints.

Under pmap it computes the examples of its own device. On a mesh the train step computes the whole
batch, and XLA divides the work.

Axes: B batch, T time, D width.
"""

import contextlib
import contextvars
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
from jax import Array
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

DEVICES = 'devices'  # the axis of pmap
AXES = ('data', 'fsdp', 'tensor')  # of a mesh; the last changes fastest
BATCH = ('data', 'fsdp')  # the axes over which examples are divided


class Spread(NamedTuple):
  """The mesh that a program is compiled for."""

  mesh: jax.sharding.Mesh
  sequence: bool  # activations are divided in time over 'tensor'
  params: Any = None  # the shardings of the parameters


_SPREAD: contextvars.ContextVar[Spread | None] = contextvars.ContextVar('spread', default=None)


@contextlib.contextmanager
def tracing_for(spread: Spread) -> Iterator[None]:
  """Functions traced in this context are programs for this mesh."""
  token = _SPREAD.set(spread)
  try:
    yield
  finally:
    _SPREAD.reset(token)


def _under_pmap() -> bool:
  try:
    return bool(jax.lax.axis_size(DEVICES))
  except NameError:  # no such axis here
    return False


def all_sum(tree: Any) -> Any:
  """Sums each leaf over the devices."""
  if _under_pmap():
    return jax.lax.psum(tree, DEVICES)
  return tree


def device_key(rng: Array) -> Array:
  """Returns a random key of this device; on a mesh, which draws for the whole batch, `rng`."""
  if _under_pmap():
    return jax.random.fold_in(rng, jax.lax.axis_index(DEVICES))
  return rng


def shards(mesh: jax.sharding.Mesh) -> int:
  """Returns the number of parts that a batch is divided into."""
  return math.prod(mesh.shape[axis] for axis in BATCH)


def batch_shards() -> int:
  """Returns the parts of the batch that the program being traced computes; 1 without a mesh."""
  spread = _SPREAD.get()
  if spread is None:
    return 1
  return shards(spread.mesh)


def shard_gradients(gradients: Any) -> Any:
  """Divides gradients as their parameters, so that no device holds all of them for long."""
  spread = _SPREAD.get()
  if spread is None:
    return gradients
  return jax.lax.with_sharding_constraint(gradients, spread.params)


def shard_activations(x: Array) -> Array:
  """Keeps activations [B, T, D] on the devices of their examples, whole or divided in T.

  Without it XLA may choose to move activations where moving weights is cheaper. Divided in time,
  norms and residuals of a tensor-parallel block take 1/n of the memory (Korthikanti et al. 2022,
  4.2.2).
  """
  spread = _SPREAD.get()
  if spread is None or x.shape[0] % shards(spread.mesh):
    return x
  time_axis = None
  if spread.sequence and x.ndim == 3 and x.shape[1] % spread.mesh.shape['tensor'] == 0:
    time_axis = 'tensor'
  return jax.lax.with_sharding_constraint(x, NamedSharding(spread.mesh, P(BATCH, time_axis)))
