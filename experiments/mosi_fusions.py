"""CMU-MOSI, split of bc-LSTM: every fusion on every subset of the modalities, five seeds each.

  python -m experiments.mosi_fusions [--data_dir data] [--runs runs/mosi_fusions] [--seeds 5] [--together] [--only tensor,late]

With `--together` the seeds are trained as one program. On two cores one after another is faster (benchmarks/together.py).
Rows that stand in results/mosi_fusions.json are not computed again. How the settings were chosen is told by the config.
"""

import argparse
import itertools
import pathlib
import sys
import time

from experiments.record import ROOT, hardware
from experiments.rows import Row
from experiments.tables import add_rows, write_tables
from mmlm import commands, runs
from mmlm import config as configs
from mmlm.errors import UserError
from mmlm.evaluation.significance import mean_and_spread
from mmlm.evaluation.text_metrics import METRICS as DEFINITIONS
from mmlm.evaluation.text_metrics import Views, score_texts
from mmlm.experiment import Experiment
from mmlm.inference import decode, params_of
from mmlm.models.fusion import FUSIONS
from mmlm.sweeps.together import train_together
from mmlm.trees import one_of

CONFIG = 'configs/sentiment/mosi_context.py'
DATASET = 'CMU-MOSI, split of bc-LSTM'
BC_LSTM = 'bc-LSTM, Poria et al. 2017'
METRICS = {'accuracy': ('accuracy, %', 100, None, None), 'weighted_f1': ('weighted F1, %', 100, None, None)}
PUBLISHED = {'text+audio+video': 80.3}
MODALITIES = ('text', 'audio', 'video')
SUBSETS = ['+'.join(subset) for size in (3, 2, 1) for subset in itertools.combinations(MODALITIES, size)]
CELLS = [*itertools.product(sorted(FUSIONS), SUBSETS)]
ROWS = {f'{fusion}-{subset}': Row(f'{CONFIG}:fusion={fusion},modalities={subset}', f'{fusion}, {subset}', runs=5) for fusion, subset in CELLS}


def measure(row: str, paper) -> list[dict]:
  """What `./launch.sh reproduce` records of a row."""
  fusion, _, subset = row.partition('-')
  return cell(fusion, subset, paper.count(row), paper.folder, paper.settings['data.dir'])


def cell(fusion: str, subset: str, seeds: int, place: pathlib.Path, data_dir: str, together: bool = False) -> list[dict]:
  """Rows of one fusion on one subset."""
  spec = f'{CONFIG}:fusion={fusion},modalities={subset}'
  config = configs.override(configs.load_config(spec), {'data.dir': data_dir})
  began = time.monotonic()
  folders = {seed: place / f'{fusion}-{subset}-{seed}' for seed in range(seeds)}
  experiments = train_together(config, folders) if together else [_trained(spec, folder, seed, data_dir) for seed, folder in folders.items()]
  seconds = time.monotonic() - began
  first = experiments[0]
  evaluator, (split,) = first.evaluator(), first.splits('test')
  loader = first.loader(split, first.table(split, False), config.evaluate.batch_size)
  found = []
  for experiment in experiments:
    params, step = params_of(experiment, loader)
    rows = decode(first, evaluator, params, split)
    runs.write_jsonl(experiment.folder / 'predictions' / f'{split}-{step}.jsonl', rows)
    found.append(score_texts(Views(rows), METRICS, 1))
  told = commands.environment()
  rows = []
  for metric, (title, factor, _, _) in METRICS.items():
    spread = mean_and_spread([scores[metric]['value'] * factor for scores in found])
    published = PUBLISHED.get(subset) if metric == 'accuracy' else None
    rows.append({
      'row': f'{fusion}, {subset}', 'dataset': DATASET, 'split': split, 'metric': title, 'definition': DEFINITIONS[metric].definition,
      'published': published, 'source': BC_LSTM if published else None, 'ours': spread['mean'], 'spread': spread['sd'],
      'n': spread['n'], 'interval': None if spread['low'] is None else [spread['low'], spread['high']], 'config': CONFIG,
      'command': f'python -m experiments.mosi_fusions --only {fusion} --seeds {seeds}' + ' --together' * together, 'commit': told['commit'] or 'unknown',
      'hardware': hardware(told), 'seconds': seconds,
    })  # fmt: skip
  return rows


def _trained(spec: str, folder: pathlib.Path, seed: int, data_dir: str) -> Experiment:
  commands.train(spec, str(folder), {'data.dir': data_dir, 'seed': str(seed), 'parallel.strategy': 'jit'})
  return Experiment.of_run(folder, {})


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--data_dir', default='data')
  parser.add_argument('--runs', type=pathlib.Path, default=pathlib.Path('runs/mosi_fusions'))
  parser.add_argument('--seeds', type=int, default=5)
  parser.add_argument('--together', action='store_true')
  parser.add_argument('--only', default=','.join(sorted(FUSIONS)))
  arguments = parser.parse_args()
  path = ROOT / 'experiments' / 'results' / 'mosi_fusions.json'
  try:
    done = {row['row'] for row in runs.read_json(path)} if path.exists() else set()
    for fusion, subset in itertools.product(arguments.only.split(','), SUBSETS):
      one_of('--only', fusion, FUSIONS)
      if f'{fusion}, {subset}' in done:
        continue
      rows = cell(fusion, subset, arguments.seeds, arguments.runs, arguments.data_dir, arguments.together)
      add_rows(path, rows)
      print(f'{fusion}, {subset}: {rows[0]["ours"]:.2f} +- {rows[0]["spread"] or 0:.2f}', flush=True)
    write_tables(ROOT)
  except UserError as error:
    print(f'mosi_fusions: {error}', file=sys.stderr)
    sys.exit(2)


if __name__ == '__main__':
  main()
