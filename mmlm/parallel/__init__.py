"""One device by jit, all by pmap, or a mesh of them: the same functions, the same numbers."""

from mmlm.parallel.axes import (
  all_sum,
  batch_shards,
  device_key,
  shard_activations,
  shard_gradients,
)
from mmlm.parallel.compiled import peak_flops
from mmlm.parallel.devices import describe_devices, run_concurrently
from mmlm.parallel.strategies import STRATEGIES, Parallel, local_mesh

__all__ = [
  'STRATEGIES',
  'Parallel',
  'all_sum',
  'batch_shards',
  'describe_devices',
  'device_key',
  'local_mesh',
  'peak_flops',
  'run_concurrently',
  'shard_activations',
  'shard_gradients',
]
