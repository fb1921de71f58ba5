"""The devices of this process."""

import collections
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax


def run_concurrently(fn: Callable[[Any], Any], batches: Iterable[Any]) -> Iterator[Any]:
  """Yields fn(batch), on the host, for each batch in order.

  On one CPU device several batches run at once: the many small products of decoding leave its cores
  idle. Several processes compute one batch after another, since they must meet in the same order.
  """
  at_once = 1
  if jax.default_backend() == 'cpu' and jax.device_count() == 1:
    at_once = min(4, os.cpu_count() or 1)

  def compute(batch: Any) -> Any:
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


def describe_devices() -> dict[str, Any]:
  """Returns platform, kind, count and memory of the local devices."""
  device = jax.local_devices()[0]
  memory = (device.memory_stats() or {}).get('bytes_limit') or _host_memory()
  description = {
    'platform': device.platform,
    'kind': device.device_kind,
    'count': jax.local_device_count(),
    'memory_bytes': memory,
  }
  if jax.process_count() > 1:
    description['processes'] = jax.process_count()
  return description


def _host_memory() -> int:
  """Returns the memory of the machine, which a CPU device has, in bytes."""
  return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
