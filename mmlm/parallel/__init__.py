"""One device by jit, all devices by pmap, or a mesh of them with sharded parameters: the same functions, the same numbers."""

from mmlm.parallel.axes import all_sum, as_parameters, batch_shards, own_key, spread_rows
from mmlm.parallel.compiled import peak_flops
from mmlm.parallel.devices import describe_devices, side_by_side
from mmlm.parallel.strategies import STRATEGIES, Parallel, local_mesh

__all__ = [
  'STRATEGIES',
  'Parallel',
  'all_sum',
  'as_parameters',
  'batch_shards',
  'describe_devices',
  'local_mesh',
  'own_key',
  'peak_flops',
  'side_by_side',
  'spread_rows',
]
