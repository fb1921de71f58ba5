"""Writes the scores of finished runs into results/<table>.json and renders the tables again.

  python -m experiments.record flickr8k runs/flickr8k
      one run: bootstrap intervals over the examples
  python -m experiments.record flickr8k runs/s0 runs/s1 runs/s2
      seeds of one config: mean, spread, Student's interval
  python -m experiments.record multi30k_photos runs/gated0 runs/gated1 --name gated \
      --against runs/text0 runs/text1
      also the differences, by paired bootstrap

`./launch.sh reproduce experiments/flickr8k.py` does all of it for the rows that the table names
(rows.py). The table is a file of this folder (flickr8k.py): dataset, metrics, published numbers.
Every score file of the runs and, where `ablate` was run, every condition gives its rows.
"""

import argparse
import importlib
import pathlib
import platform
import re
import shlex
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from experiments.tables import Result, Results, add_rows, write_tables
from mmlm.evaluation.metrics import METRICS
from mmlm.evaluation.score_predictions import Predictions
from mmlm.evaluation.significance import mean_and_spread, paired_bootstrap
from mmlm.tasks import TASKS
from mmlm.utils.errors import UserError
from mmlm.utils.run_dir import read_json, read_jsonl
from mmlm.word_vectors.similarity_scores import definition_of

ROOT = pathlib.Path(__file__).resolve().parent.parent

Folders = Sequence[pathlib.Path]


class Key(NamedTuple):
  """What was measured: a split, or all folds of a table, and how (`row_name`)."""

  split: str
  row: str


class Measured(NamedTuple):
  """The scores of a run under one key."""

  scores: dict[str, Any]
  command: str  # that made them
  predictions: pathlib.Path


def load_table(name: str) -> ModuleType:
  """Returns the module of a table."""
  if not (ROOT / 'experiments' / f'{name}.py').is_file():
    raise UserError(f'no table experiments/{name}.py.')
  return importlib.import_module(f'experiments.{name}')


# Names and commands


def _joined(*parts: str) -> str:
  """Joins the parts that are not empty by commas."""
  return ', '.join(filter(None, parts))


def row_name(score: dict) -> str:
  """Returns what distinguishes the scores of a split.

  That is how the text was decoded (labels are not), on which texts, and whether inputs were
  shuffled.
  """
  decoding = score['decoding']
  name = decoding.get('method', '')
  if name == 'beam':
    name = f'beam {decoding["beam_size"]}'
  if not name:  # of running text
    name = _joined(*(f'{key} {decoding[key]}' for key in ('stride', 'lanes') if key in decoding))
  ngram = ''
  if decoding.get('ngram_weight'):
    ngram = f'{decoding["ngram"]}-gram {decoding["ngram_weight"]}'
  texts = 'of recognised texts' if score.get('text_from') else ''
  shuffled = 'inputs shuffled' if score['shuffled'] else ''
  return _joined(name, ngram, texts, shuffled)


def named(name: str, key: Key) -> str:
  """Returns the name of a row of results."""
  return _joined(name, key.row) or 'as it is'


def hardware(environment: dict) -> str:
  """Returns the device of a run."""
  devices = environment['devices']
  if devices['platform'] == 'cpu':
    return f'{environment["cpu_count"]} CPU cores ({platform.machine()})'
  return f'{devices["count"]} x {devices["kind"]}'


def trained_with(command: str) -> str:
  """Returns the config and the flags of a `train` command, without seed and folders.

  Returns '' for another command.
  """
  words = shlex.split(re.sub(r'\s--(workdir|config\.data\.dir|config\.seed)[ =]\S+', '', command))
  if 'train' not in words:
    return ''
  return shlex.join(words[words.index('train') + 1 :])


def _numbered(spec: str, folds: bool) -> str:
  """Returns the arguments of a config without what distinguishes its runs.

  That is the number of a fold, or of the run that each seed starts from.
  """
  number = r'(fold=)\d+' if folds else r'((?:start|like)=[^,\s]*?)\d+(?=[,\s]|$)'
  return re.sub(number, r'\1K', spec)


def changed(decoding: dict, configured: dict) -> dict:
  """Returns the options of a search that differ from the run's; the method has its own flag."""
  result = {}
  for key, value in decoding.items():
    if key != 'method' and configured.get(key, value) != value:
      result[key] = value
  return result


def _evaluate_command(score: dict, configured: dict) -> str:
  """Returns the command that made a score file."""
  command = 'evaluate runs/x'
  if score['split'] != 'similarity':  # word vectors have no splits
    command += f' --splits {score["split"]}'
  if score['decoding'].get('method') == 'greedy':
    command += ' --greedy'
  if score.get('text_from'):
    command += ' --text_from runs/recognition/predictions/...'
  for key, value in changed(score['decoding'], configured).items():
    command += ' ' + shlex.quote(f'--config.decoding.{key}={value}')
  return command


# Runs


def results_of(folder: pathlib.Path) -> dict[Key, Measured]:
  """Returns what was measured of a run, the newest step of each."""
  config = read_json(folder / 'config.json')
  scores = [(read_json(path), path.stem) for path in sorted((folder / 'scores').glob('*.json'))]
  scores.sort(key=lambda pair: pair[0]['step'])
  results = {}
  for score, stem in scores:
    results[Key(score['split'], row_name(score))] = Measured(
      score['scores'],
      _evaluate_command(score, config['decoding']),
      folder / 'predictions' / f'{stem}.jsonl',
    )
  return results | _ablations_of(folder, config)


def _ablations_of(folder: pathlib.Path, config: dict) -> dict[Key, Measured]:
  searched = TASKS[config['task']].answers == 'targets'
  decoding = config['decoding'] if searched else {}
  as_it_is = row_name({'decoding': decoding, 'shuffled': False})
  results = {}
  for path in sorted((folder / 'ablation').glob('*.json')):
    ablation = read_json(path)
    split = ablation['split']
    for row in ablation['rows'][1:]:
      key = Key(split, _joined(as_it_is, 'ablation', row['condition']))
      results[key] = Measured(
        row,
        f'ablate runs/x --splits {split}',
        folder / 'predictions' / row['predictions'],
      )
  return results


def _as_folds(results: dict[Key, Measured], folds: str) -> dict[Key, Measured]:
  """Returns the results of a fold under the name that all folds share."""
  renamed = {}
  for key, found in results.items():
    command = re.sub(r' --splits \S+', '', found.command)  # each fold's config names its own split
    renamed[Key(folds, key.row)] = found._replace(command=command)
  return renamed


class Runs:
  """Seeds of one config, or its folds, and the results that all of them have.

  A table's FOLDS names its folds; each of them has its own split.
  """

  def __init__(self, folders: Folders, table: ModuleType):
    folds = getattr(table, 'FOLDS', '')
    configs = [read_json(folder / 'config.json') for folder in folders]
    environments = [read_json(folder / 'environment.json') for folder in folders]
    self.environment = environments[0]
    self.language = configs[0]['data']['languages']['target']
    self.seconds = sum(map(training_seconds, folders)) / len(folders)
    self.results = [results_of(folder) for folder in folders]
    self.seeds = ''.join(f' --config.seed={config["seed"]}' for config in configs)
    if folds:
      self.results = [_as_folds(results, folds) for results in self.results]
      self.seeds = ''
    specs = {}
    for environment in environments:
      spec = trained_with(environment['command']) or table.CONFIG
      specs[_numbered(spec, bool(folds))] = None
    self.spec, *different = specs
    if different:
      raise UserError(f'these runs are no seeds of one config: {self.spec} and {different[0]}.')

  def common(self) -> list[Key]:
    """Returns the keys that all runs have, ablations last."""
    keys = set.intersection(*map(set, self.results))
    return sorted(keys, key=lambda key: (key.split, 'ablation' in key.row, key.row))

  def have(self, key: Key, metric: str) -> bool:
    """Returns whether all runs have a score."""
    return all(results[key].scores.get(metric) is not None for results in self.results)

  def statistics(self, key: Key, metric: str) -> dict[str, np.ndarray]:
    """Returns {id: sufficient statistics of an example, summed over the seeds}."""
    total: dict[str, np.ndarray] = {}
    for results in self.results:
      rows = read_jsonl(results[key].predictions)
      of_examples = Predictions(rows, self.language).statistics(metric)
      for row, statistics in zip(rows, of_examples, strict=True):
        total[row['id']] = total.get(row['id'], 0) + statistics
    return total


def training_seconds(folder: pathlib.Path) -> float:
  """Returns the time of the training steps and validations, from the log."""
  return sum(row.get('seconds', 0.0) for row in read_jsonl(folder / 'metrics.jsonl'))


# Rows of results


def rows_of(
  table: ModuleType,
  folders: Folders,
  name: str = '',
  against: Folders = (),
  other: str = '',
) -> Results:
  """Returns a row for each metric and each key that all runs have.

  Args:
    name: the label of the row of the table.
    against: runs, differences from which are added.
    other: their label.
  """
  runs = Runs(folders, table)
  rows = []
  for key in runs.common():
    for metric in table.METRICS:
      if runs.have(key, metric):
        rows.append(_measured_row(table, runs, key, name, metric))
  if against:
    rows += _differences(table, runs, Runs(against, table), name, other)
  return rows


def _measured_row(
  table: ModuleType,
  runs: Runs,
  key: Key,
  name: str,
  metric: str,
) -> Result:
  _, factor, published, source = table.METRICS[metric]
  scores = [results[key].scores[metric] for results in runs.results]
  spread = mean_and_spread([score['value'] * factor for score in scores])
  interval = [spread['low'], spread['high']]
  if len(scores) == 1:
    interval = [scores[0]['low'] * factor, scores[0]['high'] * factor]
  comparable = _is_comparable(table, key, name)
  return _row(table, runs, key, name, metric) | {
    'published': published if comparable else None,
    'source': source if comparable else None,
    'ours': spread['mean'],
    'spread': spread['sd'],
    'n': spread['n'],
    'interval': interval,
  }


def _is_comparable(table: ModuleType, key: Key, name: str) -> bool:
  """Returns whether the published numbers of a table are of such a system."""
  if key.split != getattr(table, 'SPLIT', key.split):
    return False
  if 'shuffled' in key.row or 'ablation' in key.row:
    return False
  for row in getattr(table, 'ROWS', {}).values():
    if row.label == name:
      return row.comparable
  return True


def _row(
  table: ModuleType,
  runs: Runs,
  key: Key,
  name: str,
  metric: str,
) -> Result:
  """Returns what a row says without its numbers."""
  definition = METRICS[metric].definition if metric in METRICS else definition_of(metric)
  train = f'./launch.sh train {runs.spec} --workdir runs/x{runs.seeds}'
  return {
    'row': named(name, key),
    'dataset': table.DATASET,
    'split': key.split,
    'metric': table.METRICS[metric][0],
    'definition': definition,
    'config': runs.spec.split()[0],
    'command': f'{train} && ./launch.sh {runs.results[0][key].command}',
    'commit': runs.environment['commit'],
    'hardware': hardware(runs.environment),
    'seconds': runs.seconds,
  }


def _differences(
  table: ModuleType,
  runs: Runs,
  against: Runs,
  name: str,
  other: str,
) -> Results:
  """Returns rows of `runs` minus the unchanged ones of `against`.

  Examples are drawn together, each with its sums over the seeds of its side.
  """
  rows = []
  for key in runs.common():
    unchanged = re.split('(?:^|, )(?:ablation|inputs shuffled|of recognised texts)', key.row)[0]
    reference = Key(key.split, unchanged)
    if reference not in against.common():
      continue
    for metric, (_, factor, _, _) in table.METRICS.items():
      if not (runs.have(key, metric) and against.have(reference, metric)):
        continue
      first = runs.statistics(key, metric)
      second = against.statistics(reference, metric)
      if first.keys() != second.keys():
        raise UserError(f'{key.split}: the two sides hold different examples.')
      compared = paired_bootstrap(
        np.stack(list(first.values())),
        np.stack([second[example] for example in first]),
        METRICS[metric].value,
      )
      numbers = {
        'row': f'{named(name, key)} minus {other}',
        'published': None,
        'source': None,
        'spread': None,
        'n': len(runs.results),
        'ours': compared['difference'] * factor,
        'interval': [bound * factor for bound in compared['difference_interval']],
      }
      rows.append(_row(table, runs, key, name, metric) | numbers)
  return rows


def _arguments() -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('table')
  parser.add_argument(
    'runs',
    nargs='+',
    type=pathlib.Path,
  )
  parser.add_argument(
    '--name',
    default='',
    help='label of the rows: which variant of the config',
  )
  parser.add_argument(
    '--against',
    nargs='+',
    type=pathlib.Path,
    default=[],
    help='runs of another variant',
  )
  parser.add_argument(
    '--against_name',
    default='text only',
    help='its label',
  )
  return parser.parse_args()


def main() -> None:
  """Records runs."""
  arguments = _arguments()
  name = arguments.table
  try:
    table = load_table(name)
    rows = rows_of(table, arguments.runs, arguments.name, arguments.against, arguments.against_name)
    if not rows:
      raise UserError('the runs have no score file in common: ./launch.sh evaluate them first.')
    add_rows(ROOT / 'experiments' / 'results' / f'{name}.json', rows)
    write_tables(ROOT)
  except (UserError, FileNotFoundError) as error:
    print(f'record: {error}', file=sys.stderr)
    sys.exit(2)
  print(f'{len(rows)} rows of {name}')


if __name__ == '__main__':
  main()
