"""One device by jit, or all local devices by pmap: the same functions, the same numbers.

A function that runs under `Parallel` sees the rows of its own device and asks this module for sums over all of them.
"""

import collections
import os
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np

from mmlm.errors import UserError

AXIS = 'devices'


def _under_pmap() -> bool:
  try:
    return bool(jax.lax.axis_size(AXIS))
  except NameError:  # jax knows no such axis here
    return False


def all_sum(tree):
  """Sum of each leaf over the devices."""
  return jax.lax.psum(tree, AXIS) if _under_pmap() else tree


def own_key(rng):
  """A random key of this device."""
  return jax.random.fold_in(rng, jax.lax.axis_index(AXIS)) if _under_pmap() else rng


def side_by_side(fn, batches):
  """fn(batch), on the host, for each batch in order.

  On one CPU device several batches run at once: the many small products of decoding leave its cores waiting for each other.
  """
  several = jax.default_backend() == 'cpu' and jax.local_device_count() == 1
  at_once = min(4, os.cpu_count() or 1) if several else 1
  compute = lambda batch: jax.device_get(fn(batch))
  running = collections.deque()
  with ThreadPoolExecutor(at_once) as pool:
    for batch in batches:
      running.append(pool.submit(compute, batch))
      if len(running) == 1:
        running[0].result()  # before the others start: it compiles
      elif len(running) > at_once:
        yield running.popleft().result()
    for future in running:
      yield future.result()


class Parallel:
  """strategy 'jit' (one device), 'pmap' (all local devices), or 'auto' (pmap when there are several)."""

  def __init__(self, strategy: str = 'auto'):
    if strategy not in ('auto', 'jit', 'pmap'):
      raise UserError(f"parallel.strategy={strategy!r}: choose 'auto', 'jit' or 'pmap'.")
    self.pmap = strategy == 'pmap' or (strategy == 'auto' and jax.local_device_count() > 1)
    self.devices = jax.local_device_count() if self.pmap else 1

  def replicate(self, tree):
    """Host or single-device tree -> what compiled functions take."""
    if not self.pmap:
      return jax.device_put(tree, jax.local_devices()[0])
    stacked = jax.tree.map(lambda x: np.broadcast_to(np.asarray(x), (self.devices, *np.shape(x))), tree)
    return jax.pmap(lambda x: x)(stacked) if jax.tree.leaves(tree) else tree

  def unreplicate(self, tree):
    return jax.tree.map(lambda x: x[0], tree) if self.pmap else tree

  def shard(self, batch: dict) -> dict:
    """[B, ...] -> [devices, B / devices, ...]; B must divide (batches are padded with weight 0)."""
    return jax.tree.map(lambda x: x.reshape(self.devices, -1, *x.shape[1:]), batch)

  def step(self, fn):
    """Compiles (state, batch) -> (state, metrics); the old state is donated. Metrics are equal on all devices."""
    if not self.pmap:
      return jax.jit(fn, donate_argnums=0)
    run = jax.pmap(fn, AXIS, donate_argnums=0)

    def step(state, batch):
      state, metrics = run(state, self.shard(batch))
      return state, self.unreplicate(metrics)

    return step

  def rows(self, fn):
    """Compiles (replicated, batch) -> tree of arrays with a leading batch axis."""
    if not self.pmap:
      return jax.jit(fn)
    run = jax.pmap(fn, AXIS)
    merge = lambda x: x.reshape(-1, *x.shape[2:])
    return lambda params, batch: jax.tree.map(merge, run(params, self.shard(batch)))


def describe_devices() -> dict:
  """Platform, kind, count and memory of the local devices, for people and for environment.json."""
  device = jax.local_devices()[0]
  memory = (device.memory_stats() or {}).get('bytes_limit')
  memory = memory or os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')  # a CPU device has the machine's
  count = jax.local_device_count()
  return {'platform': device.platform, 'kind': device.device_kind, 'count': count, 'memory_bytes': memory}
