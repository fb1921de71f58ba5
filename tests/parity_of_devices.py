"""Compares training on one device, on eight by pmap and on eight by meshes.

    python -m tests.parity_of_devices [--steps 20] [CONFIG...]

Trains the `:smoke` form of a config of each task, dropout off, on eight forced CPU devices. Prints
by how much losses differ from those of one device, and scores of hypotheses from the same
parameters. Exits with 1 if they differ.
"""

import argparse
import os
import pathlib
import sys
import tempfile

if __name__ == '__main__':  # before jax is imported; under pytest conftest.py has done it
  os.environ.setdefault('XLA_FLAGS', '--xla_force_host_platform_device_count=8')
  os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from mmlm import config as configs
from mmlm.experiment.experiment import Experiment
from mmlm.experiment.training import training_parts
from mmlm.training.step import train_step

ROOT = pathlib.Path(__file__).resolve().parent.parent
CONFIGS = (
  'configs/captioning/unicode_pictures.py',
  'configs/translation/numerals.py',
  'configs/sentiment/generated.py',
  'configs/speech/keypad_tones.py',
  'configs/speech/mboshi.py:task=multitask',
  'configs/captioning/flickr8k.py',
  'configs/sentiment/mosi_context.py',
  'configs/translation/multi30k_rnn.py',
)
WAYS = {
  'jit': {'parallel.strategy': 'jit'},
  'pmap': {'parallel.strategy': 'pmap'},
  'data=8': {'parallel.strategy': 'mesh', 'parallel.mesh': 'data=8'},
  'data=2,fsdp=4': {'parallel.strategy': 'mesh', 'parallel.mesh': 'data=2,fsdp=4'},
  'tensor=2': {
    'parallel.strategy': 'mesh',
    'parallel.mesh': 'data=-1,tensor=2',
    'parallel.sequence': 'True',
  },
  'data=2,fsdp=2,tensor=2': {
    'parallel.strategy': 'mesh',
    'parallel.mesh': 'data=2,fsdp=2,tensor=2',
  },
}
# No dropout, and steps that change the loss from the first on.
SAME = {'optimizer.warmup': '2 steps', 'train.batch_size': '16', 'evaluate.batch_size': '16'}


def trained(spec: str, folder, settings: dict, steps: int):
  """Trains a config for some steps.

  Returns:
    The experiment, its losses, its parameters on the host, and their bytes on the first device.
  """
  path, _, arg = spec.partition(':')
  config = configs.load_config(f'{ROOT / path}:{",".join(filter(None, ["smoke", arg]))}')
  no_dropout = {}  # which pmap draws by device
  for key, value in flatten_dict(config.to_dict(), sep='.').items():
    if isinstance(value, float) and key.endswith(('dropout', 'weight_drop')):
      no_dropout[key] = '0.0'
  experiment = Experiment(configs.override(config, no_dropout | SAME | settings), folder)
  parts, state = training_parts(experiment, *experiment.data.splits('train'))
  options = parts.options
  parallel = experiment.parallel
  step = parallel.step(lambda state, batch: train_step(state, batch, options), options.accumulate)
  state = parallel.place(state)
  losses = []
  start = jax.device_get(parallel.unreplicate(state.params))
  with parts.stream(0, steps) as batches:
    for batch in batches:
      state, metrics = step(state, batch)
      losses.append(float(metrics['loss']))
  held = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state.params))
  params = jax.device_get(parallel.unreplicate(state.params))
  moved = max(np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (params, start))))
  assert moved > 1e-4, 'the steps leave the parameters as they are: equal losses would say nothing'
  return experiment, np.array(losses), params, held


def answers(experiment, params, examples: int = 16) -> list:
  """Returns the predictions for the first examples of the validation split, with scores."""
  (split, *_) = experiment.data.splits('valid')
  loader = experiment.data.loader(
    split, experiment.data.table(split, False, examples), experiment.config.evaluate.batch_size
  )
  return experiment.evaluator().predict(
    experiment.parallel.place(experiment.weights(params)), loader, experiment.data.buckets
  )


def difference(mine: list, theirs: list) -> float:
  """Returns the largest difference of scores and numbers; infinite if a hypothesis differs."""
  pairs = []
  for left, right in zip(mine, theirs, strict=True):
    for a, b in zip(left, right, strict=True):
      pairs.append((a, b))

  def numbers(row):
    return [
      row['score'],
      *(score for _, score in row.get('n_best', ())),
      *row.get('probabilities', {}).values(),
    ]

  def words(row):
    return [
      row['id'],
      *(text for text, _ in row.get('n_best', ())),
      *([] if _is_number(row['hypothesis']) else [row['hypothesis']]),
    ]

  if any(words(a) != words(b) for a, b in pairs):
    return np.inf
  return max(abs(x - y) for a, b in pairs for x, y in zip(numbers(a), numbers(b), strict=True))


def _is_number(text: str) -> bool:
  """Whether a hypothesis is a regressor's, which is rounded from its score."""
  return text.replace('.', '').replace('-', '').isdigit()


def compared(
  spec: str, folder, settings: dict, steps: int, ways=tuple(WAYS), answering=tuple(WAYS)
) -> dict:
  """Compares strategies with jit.

  Args:
    answering: the strategies whose answers are compared too; for others the difference is 0.

  Returns:
    {strategy: (largest difference of a loss, of a score, bytes of parameters a device)}, and the
    losses of jit as 'losses'.
  """
  experiment, losses, params, held = trained(spec, folder, settings | WAYS['jit'], steps)
  expected = answers(experiment, params)
  found = {'losses': losses, 'jit': (0.0, 0.0, held)}
  for way in ways[1:]:
    experiment, mine, _, held = trained(spec, folder, settings | WAYS[way], steps)
    if way in answering:
      score = difference(answers(experiment, params), expected)
    else:
      score = 0.0
    found[way] = np.abs(mine - losses).max(), score, held
  return found


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('configs', nargs='*', default=CONFIGS)
  parser.add_argument('--steps', type=int, default=20)
  given = parser.parse_args()
  worst = 0.0
  with tempfile.TemporaryDirectory() as folder:
    for number, spec in enumerate(given.configs):
      found = compared(
        spec, pathlib.Path(folder) / f'run_{number}', {'data.dir': f'{folder}/data'}, given.steps
      )
      losses = found.pop('losses')
      print(f'{spec}: loss {losses[0]:.4f} -> {losses[-1]:.4f} in {given.steps} steps')
      for way, (loss, score, held) in found.items():
        print(
          f'  {way:<14} loss differs by {loss:.1e}, scores by {score:.1e}, '
          f'{held:>9,} bytes of parameters a device',
          flush=True,
        )
        worst = max(worst, loss, score)
  print('The same to 1e-5.' if worst < 1e-5 else f'NOT the same: {worst:.1e}.')
  return int(worst >= 1e-5)


if __name__ == '__main__':
  sys.exit(main())
