"""Measures how much faster a sweep is whose trials train in one program.

4 learning rates x 4 seeds of a small translation model, in turns.

  python experiments/benchmarks/sweep.py [--rounds 3] [--cold] [--data_dir data] [--smoke]

The model is configs/translation/numerals.py:modalities=text (generated, offline) with one layer on
each side, D 64, batches of 16, for 240 steps: where a step is large enough to keep all cores busy
by itself, training side by side gains nothing on a CPU. Each side is 16 whole trainings, with data,
validation, checkpoints and logs, in one process with its programs in the compilation cache
(`--cold`: without, one round): `vectorised` by mmlm/sweeps/together.py, and `one by one` by the
loop of `mmlm train`, which compiles its step for each learning rate, as 16 trainings do. The scores
of every validation must be equal, or the script stops.
"""

import contextlib
import io
import itertools
import pathlib
import shutil
import tempfile
import time

import numpy as np
from common import ROOT, Options, config_of, in_turns, main, row

from mmlm.experiment.experiment import Experiment
from mmlm.experiment.training import training_parts
from mmlm.sweeps.together import Trial, train_trials
from mmlm.training import loop
from mmlm.utils.run_dir import read_jsonl

CONFIG = f'{ROOT}/configs/translation/numerals.py:modalities=text'
RATES = (3e-4, 1e-3, 2e-3, 4e-3)
SEEDS = range(4)
SETTINGS = {
  'train.duration': '240 steps',
  'train.eval_every': '120 steps',
  'train.log_every': '20 steps',
  'train.keep_latest': '1',
  'train.batch_size': '16',
  'model.dim': '64',
  'model.encoders.text.layers': '1',
  'model.head.layers': '1',
  'data.buckets': '(40,)',
  'data.max_valid_examples': '128',
}
GOAL = '1.5 on 2 cores, 6 on a GPU'
TOLERANCE = 1e-4


def trials_in(folder: pathlib.Path, options: Options) -> list[Trial]:
  own = {} if options.smoke else SETTINGS
  result = []
  for rate, seed in itertools.product(
    RATES[:2] if options.smoke else RATES, SEEDS[:2] if options.smoke else SEEDS
  ):
    result.append(
      Trial(
        config_of(
          f'{CONFIG}{",smoke" if options.smoke else ""}',
          own
          | {
            'data.dir': str(options.data_dir),
            'optimizer.learning_rate': repr(rate),
            'seed': str(seed),
            'parallel.strategy': 'jit',
          },
        ),
        folder / f'{rate}-{seed}',
      )
    )
  return result


def one_by_one(trials: list[Trial]):
  for trial in trials:
    experiment = Experiment(trial.config, trial.folder)
    (split,) = experiment.data.splits('train')
    parts, state = training_parts(experiment, split)
    loop.train(
      parts, experiment.parallel, state, experiment.checkpoints(writing=True), trial.folder
    )


def scores(trials: list[Trial]) -> list:
  """Loss and monitored score of every validation of every trial."""
  result = []
  monitor = trials[0].config.train.monitor
  for trial in trials:
    for line in read_jsonl(trial.folder / 'metrics.jsonl'):
      if line['kind'] == 'valid':
        result.append([line['step'], line['loss'], line[monitor]])
  return result


def compare(options: Options) -> list[dict]:
  with tempfile.TemporaryDirectory() as place:
    sides = {'vectorised': train_trials, 'one by one': one_by_one}
    trials = {}
    for name in sides:
      trials[name] = trials_in(pathlib.Path(place, name.replace(' ', '_')), options)

    def run(name: str):
      for trial in trials[name]:
        shutil.rmtree(trial.folder, ignore_errors=True)
      began = time.perf_counter()
      with contextlib.redirect_stdout(io.StringIO()):
        sides[name](trials[name])
      print(
        f'{name}: {time.perf_counter() - began:.1f} s', flush=True
      )  # the first of each side compiles and is not counted, unless --cold

    count = len(trials['vectorised'])
    rates = in_turns(
      {name: (lambda name=name: run(name), count) for name in sides},
      1 if options.cold else options.rounds,
      not options.cold,
    )
    found = {name: scores(trials[name]) for name in sides}
  first, second = map(np.array, found.values())
  if first.shape == second.shape:
    difference = np.abs(first - second).max()
  else:
    difference = np.inf
  # A prediction near its border may fall to either side.
  if not np.abs(first - second)[:, 1].max() <= TOLERANCE:
    raise SystemExit(f'the scores differ by {difference}')
  return [
    row(
      'sweep',
      f'{count} trials',
      'trials/s',
      rates,
      GOAL,
      largest_difference=float(difference),
      cold=options.cold,
    )
  ]


if __name__ == '__main__':
  main(
    __doc__,
    {'sweep': compare},
    'sweep.json',
    {'--cold': {'action': 'store_true', 'help': 'one round, compiling included'}},
  )
