"""CMU-MOSI, split of bc-LSTM: every fusion on every subset of the modalities, five seeds each.

  ./launch.sh reproduce experiments/mosi_fusions.py [--rows tensor-text+audio,late-text]

The seeds are trained one after another, which on two cores is faster than as one program
(benchmarks/together.py). How the settings were chosen is told by the config.
"""

import itertools
import pathlib
import time
from typing import Any

from experiments.record import hardware
from experiments.rows import Row
from mmlm.cli.flags import Train
from mmlm.cli.train import train
from mmlm.evaluation.metrics import METRICS as DEFINITIONS
from mmlm.evaluation.score_predictions import Predictions, score_predictions
from mmlm.evaluation.significance import mean_and_spread
from mmlm.experiment.environment import environment
from mmlm.experiment.experiment import Experiment
from mmlm.experiment.prediction import decode, params_of
from mmlm.models.fusion import FUSIONS
from mmlm.utils import run_dir as runs

CONFIG = 'configs/sentiment/mosi_context.py'
DATASET = 'CMU-MOSI, split of bc-LSTM'
BC_LSTM = 'bc-LSTM, Poria et al. 2017'
METRICS = {
  'accuracy': ('accuracy, %', 100, None, None),
  'weighted_f1': ('weighted F1, %', 100, None, None),
}
PUBLISHED = {'text+audio+video': 80.3}
SUBSETS = (
  'text+audio+video',
  'text+audio',
  'text+video',
  'audio+video',
  'text',
  'audio',
  'video',
)
ROWS = {}
for fusion, subset in itertools.product(sorted(FUSIONS), SUBSETS):
  ROWS[f'{fusion}-{subset}'] = Row(
    f'{CONFIG}:fusion={fusion},modalities={subset}',
    f'{fusion}, {subset}',
    runs=5,
  )


def measure(row: str, paper: Any) -> list[dict]:
  """What `./launch.sh reproduce` records of a row."""
  fusion, _, subset = row.partition('-')
  spec = ROWS[row].spec
  data_dir = paper.settings['data.dir']
  began = time.monotonic()
  experiments = []
  for seed in range(paper.count(row)):
    experiments.append(_trained(spec, paper.folder / f'{row}-{seed}', seed, data_dir))
  seconds = time.monotonic() - began
  first = experiments[0]
  evaluator, (split,) = first.evaluator(), first.data.splits('test')
  loader = first.data.loader(
    split, first.data.table(split, False), first.config.evaluate.batch_size
  )
  found = []
  for experiment in experiments:
    params, step = params_of(experiment, loader)
    answers = decode(first, evaluator, params, split)
    runs.write_jsonl(experiment.folder / 'predictions' / f'{split}-{step}.jsonl', answers)
    found.append(score_predictions(Predictions(answers), METRICS, 1))
  told = environment()
  rows = []
  for metric, (title, factor, _, _) in METRICS.items():
    spread = mean_and_spread([scores[metric]['value'] * factor for scores in found])
    if metric == 'accuracy':
      published = PUBLISHED.get(subset)
    else:
      published = None
    rows.append(
      {
        'row': f'{fusion}, {subset}',
        'dataset': DATASET,
        'split': split,
        'metric': title,
        'definition': DEFINITIONS[metric].definition,
        'published': published,
        'source': BC_LSTM if published else None,
        'ours': spread['mean'],
        'spread': spread['sd'],
        'n': spread['n'],
        'interval': None if spread['low'] is None else [spread['low'], spread['high']],
        'config': CONFIG,
        'command': f'./launch.sh reproduce experiments/mosi_fusions.py --rows {row}',
        'commit': told['commit'] or 'unknown',
        'hardware': hardware(told),
        'seconds': seconds,
      }
    )
  return rows


def _trained(spec: str, folder: pathlib.Path, seed: int, data_dir: str) -> Experiment:
  settings = {'data.dir': data_dir, 'seed': str(seed), 'parallel.strategy': 'jit'}
  train(Train(config=spec, workdir=str(folder), settings=settings))
  return Experiment.of_run(folder, {})
