"""Writes the scores of finished runs into results/<table>.json and renders the tables again.

  python -m experiments.record flickr8k runs/flickr8k              one run: bootstrap intervals over the examples
  python -m experiments.record flickr8k runs/s0 runs/s1 runs/s2    seeds of one config: mean, spread, Student's interval
  python -m experiments.record multi30k_photos runs/gated0 runs/gated1 --name gated --against runs/text0 runs/text1
                                                                   also the differences, by paired bootstrap

`./launch.sh reproduce experiments/flickr8k.py` does all of it for the rows that the table names (rows.py).
The table is a file of this folder (flickr8k.py): dataset, metrics, published numbers. Every score file of the runs and, where `ablate`
was run, every condition gives its rows.
"""

import argparse
import importlib
import pathlib
import platform
import re
import shlex
import sys

from experiments.tables import add_rows, write_tables
from mmlm.evaluation.metrics import METRICS
from mmlm.evaluation.score_predictions import Predictions
from mmlm.evaluation.significance import mean_and_spread, paired_bootstrap
from mmlm.tasks import TASKS
from mmlm.utils.errors import UserError
from mmlm.utils.run_dir import read_json, read_jsonl
from mmlm.word_vectors.similarity_scores import definition_of

ROOT = pathlib.Path(__file__).resolve().parent.parent


def load_table(name: str):
  if not (ROOT / 'experiments' / f'{name}.py').is_file():
    raise UserError(f'no table experiments/{name}.py.')
  return importlib.import_module(f'experiments.{name}')


def row_name(score: dict) -> str:
  """What tells one row from another: how it was decoded (labels are not), of which texts, and whether the inputs were shuffled."""
  decoding = score['decoding']
  if decoding.get('method') == 'beam':
    name = f'beam {decoding["beam_size"]}'
  else:
    name = decoding.get('method', '')
  name = name or ', '.join(
    f'{key} {decoding[key]}' for key in ('stride', 'lanes') if key in decoding
  )  # of running text
  if decoding.get('ngram_weight'):
    ngram = f'{decoding["ngram"]}-gram {decoding["ngram_weight"]}'
  else:
    ngram = ''
  if score.get('text_from'):
    texts = 'of recognised texts'
  else:
    texts = ''
  return ', '.join(
    filter(None, (name, ngram, texts, 'inputs shuffled' if score['shuffled'] else ''))
  )


def hardware(environment: dict) -> str:
  devices = environment['devices']
  if devices['platform'] == 'cpu':
    count = environment['cpu_count']
  else:
    count = devices['count']
  if devices['platform'] == 'cpu':
    return f'{count} CPU cores ({platform.machine()})'
  return f'{count} x {devices["kind"]}'


def results_of(folder: pathlib.Path) -> dict:
  """{(split, row): (scores, the command that made them, their predictions file)} of the newest step of each."""
  config = read_json(folder / 'config.json')
  found = {}
  for path in sorted((folder / 'scores').glob('*.json'), key=lambda path: read_json(path)['step']):
    score = read_json(path)
    # word vectors have none
    if score['split'] == 'similarity':
      splits = ''
    else:
      splits = f' --splits {score["split"]}'
    command = f'evaluate runs/x{splits}' + (
      ' --greedy' if score['decoding'].get('method') == 'greedy' else ''
    )
    command += ' --text_from runs/recognition/predictions/...' if score.get('text_from') else ''
    command += ''.join(
      f' {shlex.quote(f"--config.decoding.{key}={value}")}'
      for key, value in changed(score['decoding'], config['decoding']).items()
    )
    found[score['split'], row_name(score)] = (
      score['scores'],
      command,
      folder / 'predictions' / f'{path.stem}.jsonl',
    )
  searched = TASKS[config['task']].answers == 'targets'
  as_it_is = row_name({'decoding': config['decoding'] if searched else {}, 'shuffled': False})
  for path in sorted((folder / 'ablation').glob('*.json')):
    ablation = read_json(path)
    for row in ablation['rows'][1:]:
      key = ablation['split'], ', '.join(filter(None, (as_it_is, 'ablation', row['condition'])))
      found[key] = (
        row,
        f'ablate runs/x --splits {ablation["split"]}',
        folder / 'predictions' / row['predictions'],
      )
  return found


def changed(decoding: dict, configured: dict) -> dict:
  """The options of a search that `evaluate` was given otherwise than the run has them; the method is told by its flag."""
  result = {}
  for key, value in decoding.items():
    if key != 'method' and configured.get(key, value) != value:
      result[key] = value
  return result


def trained_with(command: str) -> str:
  """The config and the flags of a `train` command, without seed and places; '' for another command."""
  words = shlex.split(re.sub(r'\s--(workdir|config\.data\.dir|config\.seed)[ =]\S+', '', command))
  if 'train' in words:
    return shlex.join(words[words.index('train') + 1 :])
  return ''


def _numbered(spec: str, folds: bool) -> str:
  """The arguments of a config without what tells its runs apart: the number of a fold, or of the run that each seed starts from."""
  return re.sub(
    r'(fold=)\d+' if folds else r'((?:start|like)=[^,\s]*?)\d+(?=[,\s]|$)', r'\1K', spec
  )


class Runs:
  """Seeds of one config, whose results all of them have; or the folds of one, which a table's FOLDS names, each with its own split."""

  def __init__(self, folders: list[pathlib.Path], table):
    self.environments = [read_json(folder / 'environment.json') for folder in folders]
    folds = getattr(table, 'FOLDS', '')
    default = table.CONFIG
    self.results = [results_of(folder) for folder in folders]
    configs = [read_json(folder / 'config.json') for folder in folders]
    self.seeds = ''.join(f' --config.seed={config["seed"]}' for config in configs)
    if folds:  # each fold's config names its own split

      def without(command):
        return re.sub(r' --splits \S+', '', command)

      self.results = [
        {
          (folds, row): (scores, without(command), path)
          for (_, row), (scores, command, path) in found.items()
        }
        for found in self.results
      ]
      self.seeds = ''
    self.language = configs[0]['data']['languages']['target']
    self.seconds = sum(training_seconds(folder) for folder in folders) / len(folders)
    specs = [trained_with(environment['command']) or default for environment in self.environments]
    self.spec, *others = dict.fromkeys(_numbered(spec, bool(folds)) for spec in specs)
    if others:
      raise UserError(f'these runs are no seeds of one config: {self.spec} and {others[0]}.')

  def common(self) -> list:
    """(split, row) of all runs, what was taken away last."""
    return sorted(
      set.intersection(*map(set, self.results)),
      key=lambda key: (key[0], 'ablation' in key[1], key[1]),
    )

  def have(self, key, metric: str) -> bool:
    return all(results[key][0].get(metric) is not None for results in self.results)

  def statistics(self, key, metric: str):
    """{id: sufficient statistics of an example, summed over the seeds}."""
    total = {}
    for results in self.results:
      rows = read_jsonl(results[key][2])
      for row, statistics in zip(
        rows, Predictions(rows, self.language).statistics(metric), strict=True
      ):
        total[row['id']] = total.get(row['id'], 0) + statistics
    return total


def rows_of(
  table,
  folders: list[pathlib.Path],
  name: str = '',
  against: list[pathlib.Path] = (),
  other: str = '',
) -> list[dict]:
  """One row a metric for each (split, row) that all runs have; with `against`, the differences from these runs beside them."""
  runs = Runs(folders, table)
  rows = []
  known = next((row for row in getattr(table, 'ROWS', {}).values() if row.label == name), None)
  for key in runs.common():
    for metric, (_, factor, published, source) in table.METRICS.items():
      if not runs.have(key, metric):
        continue
      found = [results[key][0][metric] for results in runs.results]
      spread = mean_and_spread([f['value'] * factor for f in found])
      if len(found) == 1:
        interval = (found[0]['low'] * factor, found[0]['high'] * factor)
      else:
        interval = (spread['low'], spread['high'])
      comparable = (
        key[0] == getattr(table, 'SPLIT', key[0])
        and 'shuffled' not in key[1]
        and 'ablation' not in key[1]
      )
      comparable = comparable and (known is None or known.comparable)
      rows.append(
        _row(table, runs, key, name, metric)
        | {
          'published': published if comparable else None,
          'source': source if comparable else None,
          'ours': spread['mean'],
          'spread': spread['sd'],
          'n': spread['n'],
          'interval': list(interval),
        }
      )
  return rows + (_differences(table, runs, Runs(against, table), name, other) if against else [])


def _row(table, runs: Runs, key, name: str, metric: str) -> dict:
  environment = runs.environments[0]
  spec = runs.spec
  return {
    'row': named(name, key),
    'dataset': table.DATASET,
    'split': key[0],
    'metric': table.METRICS[metric][0],
    'definition': METRICS[metric].definition if metric in METRICS else definition_of(metric),
    'config': spec.split()[0],
    'command': f'./launch.sh train {spec} --workdir runs/x{runs.seeds} && ./launch.sh {runs.results[0][key][1]}',
    'commit': environment['commit'],
    'hardware': hardware(environment),
    'seconds': runs.seconds,
  }


def named(name: str, key: tuple) -> str:
  return ', '.join(filter(None, (name, key[1]))) or 'as it is'


def _differences(table, runs: Runs, against: Runs, name: str, other: str) -> list[dict]:
  """Rows of `runs`, whatever was taken away from them or recognised for them, minus those of `against` as they are: examples are drawn
  together, each with its sums over the seeds of its side.
  """
  rows = []
  for key in runs.common():
    reference = (
      key[0],
      re.split('(?:^|, )(?:ablation|inputs shuffled|of recognised texts)', key[1])[0],
    )
    if reference not in against.common():
      continue
    for metric in table.METRICS:
      if not (runs.have(key, metric) and against.have(reference, metric)):
        continue
      sides = runs.statistics(key, metric), against.statistics(reference, metric)
      if sides[0].keys() != sides[1].keys():
        raise UserError(f'{key[0]}: the two sides hold different examples.')
      factor = table.METRICS[metric][1]
      found = paired_bootstrap(
        *([side[i] for i in sides[0]] for side in sides), METRICS[metric].value
      )
      rows.append(
        _row(table, runs, key, name, metric)
        | {
          'row': f'{named(name, key)} minus {other}',
          'published': None,
          'source': None,
          'spread': None,
          'n': len(runs.results),
          'ours': found['difference'] * factor,
          'interval': [bound * factor for bound in found['difference_interval']],
        }
      )
  return rows


def training_seconds(folder: pathlib.Path) -> float:
  """Time of the training steps and validations, from the log."""
  return sum(row.get('seconds', 0.0) for row in read_jsonl(folder / 'metrics.jsonl'))


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('table')
  parser.add_argument('runs', nargs='+', type=pathlib.Path)
  parser.add_argument(
    '--name', default='', help='stands in front of the rows: which variant of the config it is'
  )
  parser.add_argument(
    '--against', nargs='+', type=pathlib.Path, default=[], help='runs of another variant'
  )
  parser.add_argument('--against_name', default='text only', help='what to call them')
  arguments = parser.parse_args()
  try:
    rows = rows_of(
      load_table(arguments.table),
      arguments.runs,
      arguments.name,
      arguments.against,
      arguments.against_name,
    )
    if not rows:
      raise UserError('the runs have no score file in common: ./launch.sh evaluate them first.')
    add_rows(ROOT / 'experiments' / 'results' / f'{arguments.table}.json', rows)
    write_tables(ROOT)
  except (UserError, FileNotFoundError) as error:
    print(f'record: {error}', file=sys.stderr)
    sys.exit(2)
  print(f'{len(rows)} rows of {arguments.table}')


if __name__ == '__main__':
  main()
