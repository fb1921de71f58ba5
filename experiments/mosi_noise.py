"""How the noise and the training of configs/sentiment/mosi_context.py are chosen.

On the 62 training videos, held out in six folds.

  python -m experiments.mosi_noise --modalities text --noise 11,12,13 \
      [--set optimizer.learning_rate=0.003] [--seeds 2] [--folds 6]

The features of the training videos tell more than those of the test videos will, also where the
classifier has not seen the labels. So the held-out videos are scored with the same noise that the
others are trained with, the mean of 20 draws, and the noise is what leaves of a modality alone what
is told of it on test videos in print. The features of sound were learned nowhere: held-out videos
have no noise there, and that of training is chosen by the score (`--set
model.encoders.audio.noise=2.0`). The test videos are not read.
"""

import argparse
import contextlib
import io
import pathlib
import sys
import tempfile
from typing import Any

import jax
import numpy as np

from mmlm.cli.flags import Train
from mmlm.cli.train import train
from mmlm.data import batching
from mmlm.evaluation.significance import mean_and_spread
from mmlm.experiment.experiment import Experiment
from mmlm.experiment.prediction import params_of
from mmlm.utils.errors import UserError

CONFIG = 'configs/sentiment/mosi_context.py'
ENDS = (0, 10, 20, 30, 41, 52)  # of the folds of 'train'
FOLDS = [('train', 'valid')]  # trained on, held out
for begin, end in zip(ENDS, ENDS[1:]):
  FOLDS.append((f'train[:{begin}]+train[{end}:]+valid', f'train[{begin}:{end}]'))
LEARNED = ('text', 'video')  # features that were learned with the labels of the training videos
DRAWS = 20


def held_out_accuracy(spec: str, overrides: dict[str, str], seeds: int, folds: int) -> list[float]:
  """Returns the accuracy in percent on all held-out videos, of each seed.

  With as much noise as in training where features were learned.
  """
  result = []
  for seed in range(seeds):
    of_folds = [_of_fold(spec, overrides, *fold, seed) for fold in FOLDS[:folds]]
    correct, utterances = np.sum(of_folds, 0)
    result.append(100 * np.divide(correct, utterances))
  return result


def _of_fold(
  spec: str, overrides: dict[str, str], learned: str, held_out: str, seed: int
) -> tuple[float, int]:
  """How many utterances of a fold are right, the mean of all draws, and of how many."""
  overrides = overrides | {
    'data.splits.train': learned,
    'data.splits.valid': held_out,
    'seed': str(seed),
    'parallel.strategy': 'jit',
  }
  with tempfile.TemporaryDirectory() as place:
    folder = pathlib.Path(place, 'run')
    with contextlib.redirect_stdout(io.StringIO()):
      train(Train(config=spec, workdir=str(folder), settings=overrides))
    experiment = Experiment.of_run(folder, {})
    table = experiment.data.table(held_out, True)
    loader = experiment.data.loader(held_out, table, len(table.ids))
    batch = loader(
      0, batching.Batch(np.arange(len(table.ids)), experiment.data.buckets[-1], len(table.ids))
    )
    params = params_of(experiment, loader)[0]

  task: Any = experiment.task

  @jax.jit
  def answer(params: dict, batch: dict) -> jax.Array:
    return task.answer(experiment.model, params, batch, None, None)['outputs']

  shares = []
  for noisy in _draws(batch, experiment.config, params):
    shares.append(_share_right(answer(params, noisy), batch))
  utterances = int(batch['label_mask'].sum())
  return float(np.mean(shares)) * utterances, utterances


def _share_right(scores: np.ndarray, batch: dict) -> float:
  return float((np.asarray(scores).argmax(-1) == batch['label'])[batch['label_mask']].mean())


def _draws(batch: dict, config: Any, params: dict):
  """Returns the batch DRAWS times, with the noise that each encoder adds in training."""
  random = np.random.default_rng(0)
  for _ in range(DRAWS):
    noisy = dict(batch)
    for modality in LEARNED:
      if modality not in config.model.encoders:
        continue
      deviation = params[f'encoders_{modality}']['normalization']['deviation']
      spread = config.model.encoders[modality].noise * np.asarray(deviation)
      noise = spread * random.normal(size=batch[modality].shape)
      noisy[modality] = batch[modality] + noise.astype(np.float32)
    yield noisy


def _setting(text: str) -> tuple[str, str]:
  key, found, value = text.partition('=')
  if not found:
    raise argparse.ArgumentTypeError(f'{text!r} is not KEY=VALUE')
  return key, value


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--modalities', default='text+audio+video')
  parser.add_argument('--fusion', default='late')
  parser.add_argument(
    '--noise', default='', help='of every modality but audio, one run each; else that of the config'
  )
  parser.add_argument('--set', action='append', default=[], type=_setting, metavar='KEY=VALUE')
  parser.add_argument('--seeds', type=int, default=2)
  parser.add_argument('--folds', type=int, default=len(FOLDS))
  parser.add_argument('--data_dir', default='data')
  arguments = parser.parse_args()
  try:
    spec = f'{CONFIG}:fusion={arguments.fusion},modalities={arguments.modalities}'
    overrides = dict(arguments.set) | {'data.dir': arguments.data_dir}
    noised = [modality for modality in arguments.modalities.split('+') if modality in LEARNED]
    for noise in arguments.noise.split(','):
      levels = {}
      if noise:
        levels = {f'model.encoders.{modality}.noise': noise for modality in noised}
      spread = mean_and_spread(
        held_out_accuracy(spec, overrides | levels, arguments.seeds, arguments.folds)
      )
      print(
        f'{arguments.modalities}, noise {noise or "of the config"}: '
        f'{spread["mean"]:.2f} +- {spread["sd"] or 0:.2f}',
        flush=True,
      )
  except UserError as error:
    print(f'mosi_noise: {error}', file=sys.stderr)
    sys.exit(2)


if __name__ == '__main__':
  main()
