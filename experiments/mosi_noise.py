"""How the noise and the training of configs/sentiment/mosi_context.py are chosen: on ten of the 62 training videos, held out.

  python -m experiments.mosi_noise --modalities text --noise 11,12,13 [--set optimizer.learning_rate=0.003] [--seeds 3]

The features of the training videos tell more than those of the test videos will, also where the classifier has not seen the labels.
So the held-out videos are scored with the same noise that the others are trained with, the mean of 20 draws, and the noise is what
leaves of a modality alone what is told of it on test videos in print. The features of sound were learned nowhere: held-out videos have no
noise there, and that of training is chosen by the score (`--set model.encoders.audio.noise=2.0`). The test videos are not read.
"""

import argparse
import pathlib
import sys
import tempfile

import jax
import numpy as np

from mmlm import config as configs
from mmlm.data import batching
from mmlm.data.pipeline import stream
from mmlm.errors import UserError
from mmlm.evaluation.significance import mean_and_spread
from mmlm.inference import params_of
from mmlm.sweeps.together import train_together

CONFIG = 'configs/sentiment/mosi_context.py'
HELD_OUT = 'valid'
LEARNED = ('text', 'video')  # features that were learned with the labels of the training videos
DRAWS = 20


def held_out_accuracy(spec: str, overrides: dict[str, str], seeds: int) -> list[float]:
  """Accuracy in percent on the held-out videos, of each seed, with as much noise as in training where features were learned."""
  config = configs.override(configs.load_config(spec), {'data.splits.train': 'train', **overrides})
  with tempfile.TemporaryDirectory() as folder:
    experiments = train_together(config, {seed: pathlib.Path(folder, str(seed)) for seed in range(seeds)})
    first = experiments[0]
    table = first.table(HELD_OUT, True)
    loader = first.loader(HELD_OUT, table, len(table.ids))
    with stream([batching.Batch(np.arange(len(table.ids)), first.buckets[-1], len(table.ids))], loader, 0, 1) as batches:
      batch = next(batches)
    found = [params_of(experiment, loader)[0] for experiment in experiments]
    deviations = {m: np.asarray(found[0][f'encoders_{m}']['normalization']['deviation']) for m in config.model.encoders}
  answer = jax.jit(lambda params, batch: first.task.answer(first.model, params, batch, None, None)['outputs'])
  return [100 * np.mean([_share_right(answer(params, noisy), batch) for noisy in _draws(batch, config, deviations)]) for params in found]


def _share_right(scores, batch: dict) -> float:
  return float((np.asarray(scores).argmax(-1) == batch['label'])[batch['label_mask']].mean())


def _draws(batch: dict, config, deviations: dict):
  """The batch with noise of the standard deviations that each encoder adds in training, DRAWS times."""
  random = np.random.default_rng(0)
  for _ in range(DRAWS):
    noisy = dict(batch)
    for modality in (m for m in LEARNED if m in config.model.encoders):
      encoder = config.model.encoders[modality]
      noisy[modality] = batch[modality] + (encoder.noise * deviations[modality] * random.normal(size=batch[modality].shape)).astype(np.float32)
    yield noisy


def _setting(text: str) -> tuple[str, str]:
  key, found, value = text.partition('=')
  if not found:
    raise argparse.ArgumentTypeError(f'{text!r} is not KEY=VALUE')
  return key, value


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--modalities', default='text+audio+video')
  parser.add_argument('--fusion', default='late')
  parser.add_argument('--noise', default='', help='of every modality but audio, one run each; else that of the config')
  parser.add_argument('--set', action='append', default=[], type=_setting, metavar='KEY=VALUE')
  parser.add_argument('--seeds', type=int, default=3)
  parser.add_argument('--data_dir', default='data')
  arguments = parser.parse_args()
  try:
    spec = f'{CONFIG}:fusion={arguments.fusion},modalities={arguments.modalities}'
    overrides = dict(arguments.set) | {'data.dir': arguments.data_dir}
    noised = [modality for modality in arguments.modalities.split('+') if modality in LEARNED]
    for noise in arguments.noise.split(',') if arguments.noise else ['']:
      levels = {f'model.encoders.{modality}.noise': noise for modality in noised} if noise else {}
      spread = mean_and_spread(held_out_accuracy(spec, overrides | levels, arguments.seeds))
      print(f'{arguments.modalities}, noise {noise or "of the config"}: {spread["mean"]:.2f} +- {spread["sd"] or 0:.2f}', flush=True)
  except UserError as error:
    print(f'mosi_noise: {error}', file=sys.stderr)
    sys.exit(2)


if __name__ == '__main__':
  main()
