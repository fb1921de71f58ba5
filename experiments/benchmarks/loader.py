"""Measures whether loading keeps up with training.

That is, examples a second that the input pipeline gives, against those that the train step takes.

  python experiments/benchmarks/loader.py [--rounds 5] [--only captioning,speech] [--data_dir data]

Each side alone has the whole machine, as loading and training have when they are measured against
each other; both have the same batches of the first epoch. Sounds are decoded, played faster, turned
into spectrograms and masked; pictures are decoded and cut. Data sets that do not lie prepared in
--data_dir, and cannot be made, are left out.
"""

import collections
import functools
import tempfile
from collections.abc import Callable
from typing import Any

from common import ROOT, Options, Trainer, config_of, examples, in_turns, main, row

from mmlm.data.batching import TrainPlan
from mmlm.data.pipeline import Table, stream
from mmlm.experiment.experiment import Experiment
from mmlm.utils.errors import UserError

GOAL = 'ratio 2'
SPECS = {
  'captioning': ('captioning/unicode_pictures.py', 'captioning/flickr8k.py'),
  'speech': ('speech/keypad_tones.py', 'speech/fsdd.py', 'speech/an4.py', 'speech/mboshi.py'),
}


def loading(kind: str, options: Options) -> list[dict]:
  specs = SPECS[kind]
  if options.smoke:
    specs = (f'{specs[0]}:smoke',)
  rows = []
  for spec in specs:
    with tempfile.TemporaryDirectory() as folder:
      experiment = Experiment(
        config_of(ROOT / 'configs' / spec, {'data.dir': str(options.data_dir)}), folder
      )
      try:
        table = experiment.data.table('train', with_targets=True, train=True)
      except UserError as error:
        print(f'{spec} is left out: {error}', flush=True)
        continue
      rows.append(row('loader', spec, 'examples/s', against_step(experiment, table, options), GOAL))
  return rows


def against_step(experiment: Experiment, table: Table, options: Options) -> dict:
  config = experiment.config
  plan = TrainPlan(
    table.lengths,
    config.train.batch_size,
    experiment.data.buckets,
    config.seed,
    config.train.batch_tokens,
  )
  loader = experiment.data.loader('train', table, config.train.batch_size, train=True)
  number = min(plan.steps_per_epoch, options.batches)
  with stream(plan, loader, 0, number) as some:
    batches = list(some)
  trainer = Trainer(config, experiment.model, batches[0], plan.steps_per_epoch)
  load = functools.partial(drain, plan, loader, number, config.data.workers)
  sides = {
    'loader': (load, examples(batches)),
    'train step': (functools.partial(trainer, batches), examples(batches)),
  }
  return in_turns(sides, options.rounds)


def drain(plan: Any, loader: Callable, number: int, workers: int):
  with stream(plan, loader, 0, number, workers) as batches:
    collections.deque(batches, maxlen=0)


if __name__ == '__main__':
  flags = {'--batches': dict(type=int, default=16, help='of the epoch, on both sides')}
  benchmarks = {
    'captioning': functools.partial(loading, 'captioning'),
    'speech': functools.partial(loading, 'speech'),
  }
  main(__doc__, benchmarks, 'loader.json', flags)
