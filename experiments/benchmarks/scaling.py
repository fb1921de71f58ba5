"""Reads from compiled programs what a train step sends and holds as devices grow.

Nothing is run, so one machine is enough.

  python experiments/benchmarks/scaling.py --devices 1,2,4,8,16,32,64 --output scaling

A decoder-only Transformer on `--rows` rows a device (weak scaling), replicated (data=n) and divided
(fsdp=n), compiled for n virtual CPU devices. Writes OUTPUT.json and OUTPUT.png: bytes of
collectives a step on one device against bytes of the parameters, and bytes that one device holds.
XLA of the CPU has no reduce-scatter: where a GPU or TPU would send 1/n of the gradient under fsdp,
it sends all of it.
"""

import argparse
import os
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))


def arguments():
  parser = argparse.ArgumentParser(description=(__doc__ or '').partition('\n')[0])
  parser.add_argument('--devices', default='1,2,4,8,16,32,64', help='numbers of devices')
  parser.add_argument('--ways', default='data,fsdp', help='axes of the mesh that have all devices')
  parser.add_argument('--rows', type=int, default=2, help='rows of a batch on each device')
  parser.add_argument('--length', type=int, default=128, help='tokens of a row')
  parser.add_argument('--dim', type=int, default=256, help='width; 64 of it are a head')
  parser.add_argument('--layers', type=int, default=4)
  parser.add_argument('--vocabulary', type=int, default=8192)
  parser.add_argument('--output', default='scaling', help='written as OUTPUT.json and OUTPUT.png')
  return parser.parse_args()


def measured(given: argparse.Namespace, counts: list[int]) -> list[dict]:
  """A row for each way and number of devices."""
  import jax

  from mmlm.experiment.virtual_mesh import cost_of_step
  from mmlm.parallel.strategies import Sharded

  options, state = decoder(given)
  rows = []
  for way in given.ways.split(','):
    for n in counts:
      found = cost_of_step(
        options,
        state,
        batch(given, n),
        Sharded(
          f'{way}={n}',
          devices=jax.devices()[:n],
        ),
      )
      sent = {kind: sent.bytes for kind, sent in found['collectives'].items()}
      row = {
        'way': way,
        'devices': n,
        'parameter_bytes': 4 * found['parameters'],
        'sent_bytes': sum(sent.values()),
        'sent': sent,
        'state_bytes': found['parameter_bytes'] + found['optimizer_bytes'],
        'memory_bytes': found['memory'],
        'temporary_bytes': found['cost'].temporaries,
        'flops': found['cost'].flops,
      }
      rows.append(row)
      print(
        f'{way}={n}: sends {row["sent_bytes"] / row["parameter_bytes"]:.2f} times the parameters, '
        f'holds {row["state_bytes"]:,} bytes of the state and '
        f'{row["temporary_bytes"]:,} temporary ones',
        flush=True,
      )
  return rows


def decoder(given: argparse.Namespace):
  """(step options, shapes of the state) of a language model of these sizes under AdamW."""
  import jax

  from mmlm.config import default_config, override
  from mmlm.models.multimodal import build_model
  from mmlm.tasks import TASKS
  from mmlm.training.optimizers import make_optimizer, make_schedule
  from mmlm.training.step import StepOptions, initial_state

  sizes = {
    'model.dim': given.dim,
    'model.head.layers': given.layers,
    'model.head.heads': max(1, given.dim // 64),
    'data.max_length': given.length,
  }
  config = default_config().unlock()
  config.task = 'language_model'
  config = override(config, {key: str(value) for key, value in sizes.items()})
  model = build_model(config.model, given.vocabulary, given.length)
  task = TASKS['language_model']
  row = batch(given, 1)
  params = jax.eval_shape(
    lambda: model.init({'params': jax.random.key(0)}, row, row['target'])['params']
  )
  optimizer = make_optimizer(
    config.optimizer, make_schedule(config.optimizer, 1000, 1, 1000), params
  )
  options = StepOptions(
    optimizer, lambda params, batch, rng: task.loss(model, params, batch, 0.0, rng)
  )
  return options, jax.eval_shape(lambda params: initial_state(params, options, 0), params)


def batch(given: argparse.Namespace, devices: int) -> dict:
  import numpy as np

  shape = (given.rows * devices, given.length)
  return {
    'target': np.zeros(shape, np.int32),
    'target_mask': np.ones(shape, bool),
    'weight': np.ones(shape[0], np.float32),
  }


def plot(rows: list[dict], path: str) -> None:
  import matplotlib

  matplotlib.use('Agg')
  from matplotlib import pyplot

  figure, (sent, held) = pyplot.subplots(1, 2, figsize=(9, 3.5), layout='constrained')
  for way in dict.fromkeys(row['way'] for row in rows):
    devices = []
    shares = []
    state = []
    temporary = []
    for row in rows:
      if row['way'] == way:
        devices.append(row['devices'])
        shares.append(row['sent_bytes'] / row['parameter_bytes'])
        state.append(row['state_bytes'] / 1e6)
        temporary.append(row['temporary_bytes'] / 1e6)
    sent.plot(devices, shares, 'o-', label=way)
    held.plot(devices, state, 'o-', label=f'{way}: parameters and optimizer')
    held.plot(devices, temporary, 'x:', label=f'{way}: temporaries')
  first = rows[0]['state_bytes'] / 1e6
  counts = sorted({row['devices'] for row in rows})
  held.plot(counts, [first / n for n in counts], color='grey', linewidth=0.8, label='1 / n')
  sent.set(
    xscale='log', xlabel='devices', ylabel='bytes sent a step / bytes of parameters', ylim=(0, None)
  )
  held.set(xscale='log', yscale='log', xlabel='devices', ylabel='MB on one device')
  for axes in (sent, held):
    axes.set_xticks(counts, map(str, counts))
    axes.minorticks_off()
    axes.legend(fontsize=7)
  figure.savefig(path, dpi=150)


def main():
  given = arguments()
  counts = sorted(map(int, given.devices.split(',')))
  os.environ['JAX_PLATFORMS'] = 'cpu'  # before jax is imported
  os.environ['XLA_FLAGS'] = (
    f'{os.environ.get("XLA_FLAGS", "")} --xla_force_host_platform_device_count={counts[-1]}'
  )
  from mmlm.utils.run_dir import write_json

  rows = measured(given, counts)
  write_json(
    f'{given.output}.json',
    {
      'sizes': {name: value for name, value in vars(given).items() if name != 'output'},
      'rows': rows,
    },
  )
  plot(rows, f'{given.output}.png')
  print(f'{given.output}.json, {given.output}.png')


if __name__ == '__main__':
  main()
