"""Measures how much faster seeds are trained together than one by one.

The train steps of a small model, in turns within one run.

  python experiments/benchmarks/together.py [--rounds 5] [--only late,tensor,cross_attention] \
      [--data_dir data]

Each benchmark is a fusion of configs/sentiment/mosi_context.py, with text, sound and picture, and
five seeds: steps a second over all seeds, of one program for all of them (mmlm/sweeps/together.py)
and of a program for one that is run for each. CMU-MOSI must lie prepared in --data_dir; with
--smoke it is the generated set with three inputs.
"""

import functools
import pathlib
import tempfile

import jax
import numpy as np
from common import ROOT, Options, config_of, in_turns, main, row

from mmlm.experiment.experiment import Experiment
from mmlm.experiment.training import training_parts
from mmlm.sweeps.together import stacked, step_of_all
from mmlm.training.step import train_step

MOSI = f'{ROOT}/configs/sentiment/mosi_context.py'
SEEDS = 5
STEPS = 40
GOAL = 'above 1'


def compare(fusion: str, options: Options) -> list[dict]:
  spec = f'{MOSI}:fusion={fusion}' + ',smoke' * options.smoke
  steps = 4 if options.smoke else STEPS
  with tempfile.TemporaryDirectory() as folder:
    parts = []
    states = []
    for seed in range(SEEDS):
      settings = {
        'data.dir': str(options.data_dir),
        'data.buckets': '(64,)',
        'seed': str(seed),
        'parallel.strategy': 'jit',
      }
      experiment = Experiment(config_of(spec, settings), pathlib.Path(folder, str(seed)))
      of_seed, state = training_parts(experiment, experiment.data.splits('train')[0])
      parts.append(of_seed)
      states.append(state)
    batches = []  # of each step, one a seed
    for part in parts:
      with part.stream(0, steps) as stream:
        batches.append([jax.tree.map(np.asarray, batch) for batch in stream])
  batches = list(zip(*batches))
  together = step_of_all(lambda *_: parts[0].options)
  one = jax.jit(lambda state, batch: train_step(state, batch, parts[0].options))

  def run_together():
    state = stacked(states)
    for of_all in batches:
      state, metrics = together(state, stacked(of_all), {})
    jax.block_until_ready(metrics)

  def run_one_by_one():
    for seed, state in enumerate(states):
      for of_all in batches:
        state, metrics = one(state, of_all[seed])
      jax.block_until_ready(metrics)

  sides = {'together': (run_together, SEEDS * steps), 'one by one': (run_one_by_one, SEEDS * steps)}
  return [row(fusion, f'{SEEDS} seeds', 'steps/s', in_turns(sides, options.rounds), GOAL)]


if __name__ == '__main__':
  benchmarks = {}
  for name in ('late', 'tensor', 'cross_attention'):
    benchmarks[name] = functools.partial(compare, name)
  main(__doc__, benchmarks, 'together.json')
