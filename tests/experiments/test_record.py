"""Run folders -> rows of the tables of measured results."""

import types

import pytest

from experiments.record import rows_of, trained_with
from experiments.tables import check_rows
from mmlm.utils import run_dir as runs
from mmlm.utils.errors import UserError

TABLE = types.SimpleNamespace(
  CONFIG='configs/a.py',
  DATASET='set',
  SPLIT='test',
  METRICS={
    'bleu': ('sacreBLEU', 1, 36.0, 'someone'),
    'exact_match': ('exact, %', 100, None, None),
    'masked_accuracy': ('of other rows', 1, None, None),
  },
)
RIGHT = [f'ein Hund läuft über die Wiese Nummer {i} .' for i in range(30)]


def run_folder(
  folder,
  seed,
  wrong,
  command='main.py train configs/a.py:fusion=b --workdir runs/q --config.seed={seed} --config.x=1',
):
  """A run that has `wrong` of 30 sentences wrong, and with its inputs shuffled all."""
  decoding = {'method': 'beam', 'beam_size': 5}
  runs.write_json(
    folder / 'config.json',
    {
      'seed': seed,
      'task': 'translation',
      'data': {'languages': {'target': ''}},
      'decoding': decoding,
    },
  )
  devices = {'platform': 'cpu', 'count': 1, 'kind': 'cpu'}
  runs.write_json(
    folder / 'environment.json',
    {'command': command.format(seed=seed), 'commit': 'abc', 'cpu_count': 2, 'devices': devices},
  )
  runs.write_jsonl(
    folder / 'metrics.jsonl', [{'step': 1, 'seconds': 3.0}, {'step': 2, 'seconds': 4.0}]
  )
  for shuffled, mistakes in (('', wrong), ('-shuffled', 30)):
    rows = []
    for i, text in enumerate(RIGHT):
      rows.append(
        {'id': str(i), 'hypothesis': 'eine Katze' if i < mistakes else text, 'references': [text]}
      )
    runs.write_jsonl(folder / 'predictions' / f'test-2{shuffled}.jsonl', rows)
    right = {'value': 1 - mistakes / 30, 'low': 0.0, 'high': 1.0}
    runs.write_json(
      folder / 'scores' / f'test-2{shuffled}.json',
      {
        'split': 'test',
        'step': 2,
        'decoding': decoding,
        'shuffled': bool(shuffled),
        'scores': {
          'exact_match': right,
          'bleu': {name: 100 * value for name, value in right.items()},
        },
      },
    )
  return folder


def test_seeds_are_one_row_with_their_spread(tmp_path):
  rows = check_rows(
    'here',
    rows_of(
      TABLE, [run_folder(tmp_path / str(seed), seed, 3 * seed) for seed in (0, 1, 2)], 'gated'
    ),
  )
  found = {(row['row'], row['metric']): row for row in rows}
  row = found['gated, beam 5', 'exact, %']
  assert (
    row['ours'] == pytest.approx(90)
    and row['spread'] == pytest.approx(10)
    and row['n'] == 3
    and row['seconds'] == 7
  )
  assert row['command'].startswith(
    './launch.sh train configs/a.py:fusion=b --config.x=1 --workdir runs/x '
    '--config.seed=0 --config.seed=1 '
  )
  assert found['gated, beam 5', 'sacreBLEU']['published'] == 36
  assert (
    found['gated, beam 5, inputs shuffled', 'sacreBLEU']['published'] is None and len(rows) == 4
  )


def test_a_search_other_than_that_of_the_run_is_in_the_row_and_its_command(tmp_path):
  folder = run_folder(tmp_path, 0, 3)
  for path, ngram in (
    (folder / 'config.json', {'ngram': 0, 'ngram_weight': 0.0}),
    (folder / 'scores' / 'test-2.json', {'ngram': 4, 'ngram_weight': 0.3}),
  ):
    found = runs.read_json(path)
    runs.write_json(path, found | {'decoding': found['decoding'] | ngram})
  row = next(row for row in rows_of(TABLE, [folder]) if row['row'] == 'beam 5, 4-gram 0.3')
  assert row['command'].endswith(
    'evaluate runs/x --splits test --config.decoding.ngram=4 --config.decoding.ngram_weight=0.3'
  )


def test_differences_are_drawn_over_the_same_examples(tmp_path):
  folders = {}
  for name, wrong in (('a', 2), ('b', 12)):
    folders[name] = [run_folder(tmp_path / f'{name}{seed}', seed, wrong + seed) for seed in (0, 1)]
  rows = rows_of(TABLE, folders['a'], 'a', folders['b'], 'b')
  found = {(row['row'], row['metric']): row for row in check_rows('here', rows)}
  row = found['a, beam 5 minus b', 'exact, %']
  assert (
    row['ours'] == pytest.approx(100 * 10 / 30)
    and 0 < row['interval'][0] < row['ours'] < row['interval'][1]
  )
  worse = found['a, beam 5, inputs shuffled minus b', 'exact, %']
  assert worse['ours'] == pytest.approx(-100 * 17.5 / 30) and worse['interval'][1] < 0
  same = rows_of(TABLE, folders['a'], 'a', folders['a'], 'itself')
  assert next(row['interval'] for row in same if row['row'] == 'a, beam 5 minus itself') == [0, 0]


def test_a_cascade_differs_from_what_reads_the_sound(tmp_path):
  cascade = run_folder(tmp_path / 'text', 0, 3)
  multitask = run_folder(tmp_path / 'multitask', 0, 9)
  score = runs.read_json(cascade / 'scores' / 'test-2-shuffled.json') | {
    'shuffled': False,
    'text_from': 'runs/recognition/predictions/test-9.jsonl',
  }
  runs.write_json(cascade / 'scores' / 'test-2-shuffled.json', score)
  found = {}
  for row in rows_of(TABLE, [cascade], 'cascade', [multitask], 'multitask'):
    if row['metric'] == 'exact, %':
      found[row['row']] = row
  assert found['cascade, beam 5 minus multitask']['ours'] == pytest.approx(20)
  assert found['cascade, beam 5, of recognised texts minus multitask']['ours'] == pytest.approx(-70)


def test_conditions_of_an_ablation_are_rows(tmp_path):
  folder = run_folder(tmp_path, 0, 3)
  scores = {'value': 0.4, 'low': 0.3, 'high': 0.5, 'difference': -0.1, 'p': 0.2}
  files = {'as it is': 'test-2.jsonl', 'without image': 'test-2-shuffled.jsonl'}
  rows = []
  for name, file in files.items():
    rows.append(
      {'condition': name, 'n': 30, 'changed': 0.5, 'exact_match': scores, 'predictions': file}
    )
  runs.write_json(folder / 'ablation' / 'test.json', {'split': 'test', 'step': 2, 'rows': rows})
  found = rows_of(TABLE, [folder], '', [run_folder(tmp_path / 'other', 1, 0)], 'other')
  (difference,) = [
    row
    for row in found
    if row['row'] == 'beam 5, ablation, without image minus other' and row['metric'] == 'exact, %'
  ]
  assert difference['ours'] == -100  # by its file of predictions
  (row,) = [row for row in found if row['row'].endswith('ablation, without image')]
  assert (
    row['row'] == 'beam 5, ablation, without image'
    and row['interval'] == [30, 50]
    and '&& ./launch.sh ablate runs/x --splits test' in row['command']
  )


def test_runs_of_other_configs_are_no_seeds(tmp_path):
  folders = [
    run_folder(tmp_path / 'a', 0, 1),
    run_folder(tmp_path / 'b', 1, 1, 'main.py train configs/a.py --workdir runs/r'),
  ]
  with pytest.raises(
    UserError, match='no seeds of one config: configs/a.py:fusion=b --config.x=1 and configs/a.py'
  ):
    rows_of(TABLE, folders)


def test_folds_are_runs_of_one_config_with_a_split_each(tmp_path):
  folders = [
    run_folder(tmp_path / str(k), 0, k, f'main.py train configs/a.py:fold={k} --workdir runs/r{k}')
    for k in range(3)
  ]
  for k, folder in enumerate(folders):
    for path in (folder / 'scores').glob('*.json'):
      runs.write_json(path, runs.read_json(path) | {'split': f'fold_{k}'})
  folds = types.SimpleNamespace(**vars(TABLE), FOLDS='3 folds')
  (row,) = [
    row for row in rows_of(folds, folders) if row['row'] == 'beam 5' and row['metric'] == 'exact, %'
  ]
  assert (
    row['split'] == '3 folds'
    and row['n'] == 3
    and row['ours'] == pytest.approx(100 * 29 / 30)
    and 'a.py:fold=K ' in row['command']
  )
  with pytest.raises(UserError, match='no seeds of one config'):
    rows_of(TABLE, folders)


@pytest.mark.parametrize(
  'command, expected',
  [
    (
      '/a/main.py train c.py:x=1 --workdir=/tmp/r --config.data.dir=/d '
      "'--config.train.duration=2 steps' --config.seed=3",
      "c.py:x=1 '--config.train.duration=2 steps'",
    ),
    ('/a/main.py', ''),
  ],
)
def test_the_command_without_seed_and_places(command, expected):
  assert trained_with(command) == expected


def test_seeds_that_each_start_from_a_run_of_their_own_are_seeds_of_one_config(tmp_path):
  command = (
    'main.py train configs/a.py:fusion=b,start=runs/text{seed} '
    '--workdir runs/q --config.seed={seed}'
  )
  folders = [run_folder(tmp_path / str(seed), seed, seed, command) for seed in (0, 1)]
  assert {row['config'] for row in rows_of(TABLE, folders)} == {
    'configs/a.py:fusion=b,start=runs/textK'
  }
  other = run_folder(tmp_path / 'other', 2, 1, command.replace('runs/text', 'runs/other'))
  with pytest.raises(UserError, match='no seeds of one config'):
    rows_of(TABLE, [*folders, other])
