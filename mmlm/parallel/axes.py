"""What a function that runs on several devices asks of them: sums, a random key, and where the rows of a batch lie.

Under pmap it sees the rows of its own device. On a mesh the train step sees the whole batch, and XLA divides the work.
Axes: B batch, T time, D width.
"""

import contextlib
import contextvars
import math
from typing import Any, NamedTuple

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

DEVICES = 'devices'  # the axis of pmap
AXES = ('data', 'fsdp', 'tensor')  # those of a mesh; the last changes fastest
BATCH = ('data', 'fsdp')  # over which examples are divided


class Spread(NamedTuple):
  """The mesh that a program is written for; `sequence` also divides the time of activations over 'tensor'."""

  mesh: jax.sharding.Mesh
  sequence: bool
  params: Any = None  # the shardings of the parameters


_SPREAD = contextvars.ContextVar('spread', default=None)


@contextlib.contextmanager
def tracing_for(spread: Spread):
  """What is traced inside is a program for this mesh."""
  token = _SPREAD.set(spread)
  try:
    yield
  finally:
    _SPREAD.reset(token)


def _under_pmap() -> bool:
  try:
    return bool(jax.lax.axis_size(DEVICES))
  except NameError:  # jax knows no such axis here
    return False


def all_sum(tree):
  """Sum of each leaf over the devices."""
  if _under_pmap():
    return jax.lax.psum(tree, DEVICES)
  return tree


def device_key(rng):
  """A random key of this device; on a mesh, where a draw is one of the whole batch, the key itself."""
  if _under_pmap():
    return jax.random.fold_in(rng, jax.lax.axis_index(DEVICES))
  return rng


def shards(mesh: jax.sharding.Mesh) -> int:
  """In how many parts the rows of a batch lie."""
  return math.prod(mesh.shape[axis] for axis in BATCH)


def batch_shards() -> int:
  """In how many parts the rows lie that the program being traced sees as one batch; 1 where it sees only its own."""
  spread = _SPREAD.get()
  return shards(spread.mesh) if spread else 1


def shard_gradients(gradients):
  """Gradients divided as their parameters are, so that no device holds all of them longer than it must."""
  spread = _SPREAD.get()
  if spread:
    return jax.lax.with_sharding_constraint(gradients, spread.params)
  return gradients


def shard_activations(x):
  """Activations [B, T, D] with their examples on the devices that have those, and the rest of them whole, or T over 'tensor'.

  Without it XLA may choose to move activations where moving weights is cheaper. Divided in time, norms and residuals of a
  tensor-parallel block take 1/n of the memory (Korthikanti et al. 2022, 4.2.2).
  """
  spread = _SPREAD.get()
  if spread is None or x.shape[0] % shards(spread.mesh):
    return x
  divided = spread.sequence and x.ndim == 3 and x.shape[1] % spread.mesh.shape['tensor'] == 0
  return jax.lax.with_sharding_constraint(
    x, NamedSharding(spread.mesh, P(BATCH, 'tensor' if divided else None))
  )
