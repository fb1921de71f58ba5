"""Cost of the train step of a config on a mesh of simulated devices: memory, operations and
communication of the compiled program, which is never run.
"""

import tempfile
from typing import Any

import jax

from mmlm import config as configs
from mmlm.experiment.experiment import Experiment
from mmlm.experiment.training import abstract_step
from mmlm.parallel.compiled import format_number
from mmlm.parallel.programs import collectives
from mmlm.parallel.rules import bytes_per_device
from mmlm.parallel.strategies import Sharded
from mmlm.training.step import StepOptions, TrainState, train_step
from mmlm.utils.errors import UserError
from mmlm.utils.pytree import count, flat


def planned(config_path: str, settings: dict[str, str], devices: int, mesh: str = '') -> dict:
  """Returns the cost of a step of a config on its longest batch, see `cost_of_step`.

  Parameters are shapes alone; data are read for their shapes.

  Args:
    mesh: sizes of the axes; '' = the config's.

  Raises:
    UserError: this process has too few devices, or the config or its mesh is wrong.
  """
  if len(jax.devices()) < devices:
    raise UserError(
      f'--devices={devices}: this process has started with {len(jax.devices())} already.'
    )
  with tempfile.TemporaryDirectory() as folder:
    settings = settings | {'parallel.strategy': 'jit'}
    config = configs.override(configs.load_config(config_path), settings)
    experiment = Experiment(config, folder)
    options = config.parallel
    parallel = Sharded(
      mesh or options.mesh, options.rules, options.sequence, jax.devices()[:devices]
    )
    return cost_of_step(*abstract_step(experiment), parallel)


def cost_of_step(options: StepOptions, state: TrainState, batch: dict, parallel: Sharded) -> dict:
  """Returns the cost of a step; bytes are those of one device.

  Args:
    options: of the step.
    state: shapes of the state before the first step.
    batch: a batch, or its shapes.
  """

  def step_fn(state: TrainState, batch: dict) -> tuple[TrainState, dict]:
    return train_step(state, batch, options)

  step = parallel.step(step_fn, options.accumulate)
  shapes = parallel.abstract_batch(batch, options.accumulate)
  shardings = parallel.shardings(state)
  compiled, cost = step.compile(parallel.abstract(state), shapes)
  optimizer_bytes = bytes_per_device(state.opt_state, shardings.opt_state)
  average_bytes = bytes_per_device(state.ema, shardings.ema)
  return {
    'devices': parallel.mesh.size,
    'mesh': dict(parallel.mesh.shape),
    'parameters': count(state.params),
    'rows': len(shapes['weight']),
    'shapes': _input_shapes(shapes),
    'parameter_bytes': bytes_per_device(state.params, shardings.params),
    'optimizer_bytes': optimizer_bytes + average_bytes,
    'cost': cost,
    'memory': cost.memory,
    'collectives': collectives(compiled.as_text()),
    'whole': _replicated(shardings.params),
  }


def _input_shapes(batch: dict) -> dict[str, tuple[int, ...]]:
  """Returns the shapes of the arrays of a batch, without masks."""
  shapes = {}
  for name, array in batch.items():
    if not name.endswith('mask'):
      shapes[name] = array.shape
  return shapes


def _replicated(shardings: Any) -> list[str]:
  """Returns the names of the parameters that every device holds in full."""
  names = []
  for name, sharding in flat(shardings).items():
    if not any(sharding.spec):
      names.append(name)
  return sorted(names)


def format_cost(cost: dict) -> list[str]:
  """Returns the lines of text that describe what `cost_of_step` returned."""
  lines = [
    _format_mesh(cost),
    _format_batch(cost['shapes']),
    _format_memory(cost),
    f'operations of a step: {format_number(cost["cost"].flops, 1000)}FLOP in matrix products on '
    'all devices',
    _format_collectives(cost['collectives']),
  ]
  if cost['whole'] and cost['devices'] > 1:
    lines.append(_format_replicated(cost['whole']))
  return lines


def _format_mesh(cost: dict) -> str:
  axes = ', '.join(f'{axis}={size}' for axis, size in cost['mesh'].items())
  return f'{cost["devices"]} devices, mesh {axes}; {cost["parameters"]:,} parameters'


def _format_batch(shapes: dict[str, tuple[int, ...]]) -> str:
  arrays = ', '.join(f'{name} {list(shape)}' for name, shape in shapes.items())
  return f'a batch: {arrays}'


def _format_memory(cost: dict) -> str:
  compiled = cost['cost']
  state = cost['parameter_bytes'] + cost['optimizer_bytes']
  rest = max(0, compiled.arguments - state)
  return (
    f'bytes a device: {_format_bytes(cost["memory"])} '
    f'(parameters {_format_bytes(cost["parameter_bytes"])}, '
    f'optimizer {_format_bytes(cost["optimizer_bytes"])}, '
    f'batch and the rest {_format_bytes(rest)}, '
    f'temporaries {_format_bytes(compiled.temporaries)}, '
    f'outputs {_format_bytes(compiled.outputs)}, '
    f'of which {_format_bytes(compiled.donated)} in place)'
  )


def _format_collectives(sent: dict) -> str:
  kinds = []
  for kind, (times, size) in sent.items():
    kinds.append(f'{kind} {times} times, {_format_bytes(size)}')
  return f'collectives of a step, bytes on a device: {", ".join(kinds) or "none"}'


def _format_replicated(names: list[str]) -> str:
  shown = ', '.join(names[:3])
  if len(names) > 3:
    shown += ', ...'
  return f'whole on every device: {len(names)} arrays of parameters ({shown})'


def _format_bytes(size: float) -> str:
  return f'{format_number(size)}B'
