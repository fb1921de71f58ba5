"""The train step of an experiment compiled for a mesh of virtual devices: what it holds, computes and sends. Nothing is run."""

import tempfile

import jax

from mmlm import config as configs
from mmlm.experiment.experiment import Experiment
from mmlm.experiment.training import abstract_step
from mmlm.parallel.compiled import format_number
from mmlm.parallel.programs import collectives
from mmlm.parallel.rules import bytes_per_device
from mmlm.parallel.strategies import Sharded
from mmlm.training.step import train_step
from mmlm.utils.errors import UserError
from mmlm.utils.pytree import count, flat


def planned(config_path: str, settings: dict, devices: int, mesh: str = '') -> dict:
  """What a step of a config costs on its longest batch; parameters are shapes alone, data are read for their shapes.

  Args:
    mesh: sizes of the axes; '' = the config's.

  Raises:
    UserError: fewer devices than that in this process, or what the config or its mesh has wrong.
  """
  if len(jax.devices()) < devices:
    raise UserError(
      f'--devices={devices}: this process has started with {len(jax.devices())} already.'
    )
  with tempfile.TemporaryDirectory() as folder:
    config = configs.override(
      configs.load_config(config_path), settings | {'parallel.strategy': 'jit'}
    )
    options = config.parallel
    experiment = Experiment(config, folder)
    parallel = Sharded(
      mesh or options.mesh, options.rules, options.sequence, jax.devices()[:devices]
    )
    return cost_of_step(*abstract_step(experiment), parallel)


def cost_of_step(options, state, batch: dict, parallel: Sharded) -> dict:
  """The same for the shapes of a state and a batch as `setup.abstract_step` gives them."""
  step = parallel.step(lambda state, batch: train_step(state, batch, options), options.accumulate)
  rows = parallel.abstract_batch(batch, options.accumulate)
  placed = parallel.shardings(state)
  compiled, cost = step.compile(parallel.abstract(state), rows)

  def held(name):
    return bytes_per_device(getattr(state, name), getattr(placed, name))

  return {
    'devices': parallel.mesh.size,
    'mesh': dict(parallel.mesh.shape),
    'parameters': count(state.params),
    'rows': len(rows['weight']),
    'shapes': {name: x.shape for name, x in rows.items() if not name.endswith('mask')},
    'parameter_bytes': held('params'),
    'optimizer_bytes': held('opt_state') + held('ema'),
    'cost': cost,
    'memory': cost.memory,
    'collectives': collectives(compiled.as_text()),
    'whole': sorted(
      name for name, sharding in flat(placed.params).items() if not any(sharding.spec)
    ),
  }


def told(found: dict) -> list[str]:
  """The lines that a person reads."""

  def size(number):
    return f'{format_number(number)}B'

  cost = found['cost']
  sent = found['collectives']
  state = found['parameter_bytes'] + found['optimizer_bytes']
  lines = [
    f'{found["devices"]} devices, mesh '
    + ', '.join(f'{axis}={n}' for axis, n in found['mesh'].items())
    + f'; {found["parameters"]:,} parameters',
    'a batch: ' + ', '.join(f'{name} {list(shape)}' for name, shape in found['shapes'].items()),
    f'bytes a device: {size(found["memory"])} (parameters {size(found["parameter_bytes"])}, optimizer {size(found["optimizer_bytes"])}, '
    f'batch and the rest {size(max(0, cost.arguments - state))}, temporaries {size(cost.temporaries)}, outputs {size(cost.outputs)}, '
    f'of which {size(cost.donated)} in place)',
    f'operations of a step: {format_number(cost.flops, 1000)}FLOP in matrix products on all devices',
    'collectives of a step, bytes on a device: '
    + (', '.join(f'{kind} {n} times, {size(b)}' for kind, (n, b) in sent.items()) or 'none'),
  ]
  if len(found['whole']) and found['devices'] > 1:
    shown = ', '.join(found['whole'][:3])
    lines.append(
      f'whole on every device: {len(found["whole"])} arrays of parameters ({shown}{", ..." if len(found["whole"]) > 3 else ""})'
    )
  return lines
