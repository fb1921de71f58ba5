"""The devices of this process."""

import collections
import os
from concurrent.futures import ThreadPoolExecutor

import jax


def run_concurrently(fn, batches):
  """fn(batch), on the host, for each batch in order.

  On one CPU device several batches run at once: the many small products of decoding leave its cores waiting for each other.
  Several processes must meet in the same order, one batch after another.
  """
  several = jax.default_backend() == 'cpu' and jax.device_count() == 1
  if several:
    at_once = min(4, os.cpu_count() or 1)
  else:
    at_once = 1

  def compute(batch):
    return jax.device_get(fn(batch))

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


def describe_devices() -> dict:
  """Platform, kind, count and memory of the local devices, for people and for environment.json."""
  device = jax.local_devices()[0]
  memory = (device.memory_stats() or {}).get('bytes_limit')
  memory = memory or os.sysconf('SC_PAGE_SIZE') * os.sysconf(
    'SC_PHYS_PAGES'
  )  # a CPU device has the machine's
  count = jax.local_device_count()
  if jax.process_count() > 1:
    processes = {'processes': jax.process_count()}
  else:
    processes = {}
  return {
    'platform': device.platform,
    'kind': device.device_kind,
    'count': count,
    'memory_bytes': memory,
    **processes,
  }
