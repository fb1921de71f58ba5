"""Writes the scores of finished runs into results/<table>.json and renders the tables again.

  python -m experiments.record flickr8k runs/flickr8k              one run: bootstrap intervals over the examples
  python -m experiments.record flickr8k runs/s0 runs/s1 runs/s2    seeds of one config: mean, spread, Student's interval

The table is a file of this folder (flickr8k.py): dataset, metrics, published numbers. Every score file of the runs gives its rows.
"""

import argparse
import importlib
import pathlib
import platform
import sys

from experiments.tables import add_rows, write_tables
from mmlm.errors import UserError
from mmlm.evaluation.significance import mean_and_spread
from mmlm.evaluation.text_metrics import METRICS
from mmlm.runs import read_json, read_jsonl

ROOT = pathlib.Path(__file__).resolve().parent.parent


def load_table(name: str):
  if not (ROOT / 'experiments' / f'{name}.py').is_file():
    raise UserError(f'no table experiments/{name}.py.')
  return importlib.import_module(f'experiments.{name}')


def row_name(score: dict) -> str:
  """What tells one row from another: how it was decoded, and whether the pictures were shuffled."""
  decoding = score['decoding']
  name = f'beam {decoding["beam_size"]}' if decoding['method'] == 'beam' else decoding['method']
  return name + (', pictures shuffled' if score['shuffled'] else '')


def hardware(environment: dict) -> str:
  devices = environment['devices']
  count = environment['cpu_count'] if devices['platform'] == 'cpu' else devices['count']
  return f'{count} CPU cores ({platform.machine()})' if devices['platform'] == 'cpu' else f'{count} x {devices["kind"]}'


def scores_of(folder: pathlib.Path) -> dict:
  """{(split, row): score file} of the newest step of each."""
  files = sorted(map(read_json, (folder / 'scores').glob('*.json')), key=lambda score: score['step'])
  return {(score['split'], row_name(score)): score for score in files}


def rows_of(table, folders: list[pathlib.Path]) -> list[dict]:
  """One row a metric for each (split, decoding, shuffled) that all runs have; the newest step of each."""
  runs = [scores_of(folder) for folder in folders]
  environment = read_json(folders[0] / 'environment.json')
  seeds = ' '.join(f'--config.seed={read_json(folder / "config.json")["seed"]}' for folder in folders)
  seconds = sum(training_seconds(folder) for folder in folders) / len(folders)
  rows = []
  for key in sorted(set.intersection(*(set(scores) for scores in runs))):
    for metric, (title, factor, published, source) in table.METRICS.items():
      found = [scores[key]['scores'].get(metric) for scores in runs]
      if None in found:
        continue
      spread = mean_and_spread([f['value'] * factor for f in found])
      interval = [found[0]['low'] * factor, found[0]['high'] * factor] if len(found) == 1 else [spread['low'], spread['high']]
      interval = (found[0]['low'] * factor, found[0]['high'] * factor) if len(found) == 1 else (spread['low'], spread['high'])
      command = f'./launch.sh train {table.CONFIG} --workdir runs/x {seeds} && ./launch.sh evaluate runs/x'
      rows.append({
        'row': key[1], 'dataset': table.DATASET, 'split': key[0], 'metric': title, 'definition': METRICS[metric].definition,
        'published': None if 'shuffled' in key[1] else published, 'source': source, 'ours': spread['mean'],
        'spread': spread['sd'], 'n': spread['n'], 'interval': list(interval), 'config': table.CONFIG,
        'command': command + (' --greedy' if 'greedy' in key[1] else ''), 'commit': environment['commit'],
        'hardware': hardware(environment), 'seconds': seconds,
      })  # fmt: skip
  return rows


def training_seconds(folder: pathlib.Path) -> float:
  """Time of the training steps and validations, from the log."""
  return sum(row.get('seconds', 0.0) for row in read_jsonl(folder / 'metrics.jsonl'))


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('table')
  parser.add_argument('runs', nargs='+', type=pathlib.Path)
  arguments = parser.parse_args()
  try:
    rows = rows_of(load_table(arguments.table), arguments.runs)
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
