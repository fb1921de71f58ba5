import base64
import html.parser
import io
import json
import re

import pytest
from PIL import Image

from experiments import tables
from mmlm.reports import examples
from mmlm.reports.run_page import SAMPLE_SIZE, write_report
from mmlm.utils import run_dir as runs
from mmlm.utils.errors import UserError

EVIL = '<script>alert("x")</script>'
ROW = {
  'row': 'frozen grid, beam 4',
  'dataset': 'Flickr8k',
  'split': 'test',
  'metric': 'BLEU-4 (%)',
  'definition': 'corpus BLEU',
  'published': 19.5,
  'source': 'Xu et al.',
  'ours': 22.126,
  'spread': None,
  'n': 1,
  'interval': [21.0, 23.26],
  'config': 'flickr8k.py',
  'command': './launch.sh train flickr8k.py',
  'commit': '0123456789abcdef',
  'hardware': '2 cores',
  'seconds': 5400,
}


def data_of(page: str) -> dict:
  """What the script of a page reads."""
  return json.loads(
    re.search('<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1]
  )


class _Tags(html.parser.HTMLParser):
  def __init__(self, text):
    super().__init__()
    self.found = []
    self.feed(text)

  def handle_starttag(self, tag, attributes):
    self.found.append((tag, dict(attributes)))


def picture(width, height, form='PNG') -> bytes:
  with io.BytesIO() as file:
    Image.new('RGB', (width, height)).save(file, form)
    return file.getvalue()


def add_scores(folder, value, method='beam', split='test-a', step=20, shuffled=False):
  tag = (
    f'{split}-{step}'
    + ('-greedy' if method == 'greedy' else '')
    + ('-shuffled' if shuffled else '')
  )
  runs.write_json(
    folder / 'scores' / f'{tag}.json',
    {
      'split': split,
      'step': step,
      'shuffled': shuffled,
      'n': 40,
      'seconds': 1.0,
      'decoding': {'method': method, 'beam_size': 4, 'top_p': 0.75},
      'scores': {'bleu_4': {'value': value, 'low': value - 0.01, 'high': value + 0.01}},
    },
  )


@pytest.fixture
def run_folder(tmp_path):
  runs.write_json(tmp_path / 'config.json', {'name': 'Tiny', 'seed': 1, 'model': {'width': EVIL}})
  runs.write_json(tmp_path / 'environment.json', {'versions': {'jax': '0.10'}})
  rows = []
  for step in range(1, 1001):
    rows.append(
      {
        'step': step,
        'kind': 'train',
        'loss': 5.0 / step,
        'learning_rate': 1.0,
        'gradient_norm': 2.0,
      }
    )
  rows += [
    {'step': 500, 'kind': 'valid', 'loss': 3.0, 'bleu_4': 0.1, 'perplexity': 20.0, 'seconds': 1.0},
    {'step': 1000, 'kind': 'valid', 'bleu_4': float('nan')},
  ]
  runs.write_jsonl(tmp_path / 'metrics.jsonl', rows)
  for shuffled in (True, False):
    add_scores(tmp_path, 0.051 if shuffled else 0.213, shuffled=shuffled)
    add_scores(tmp_path, 0.061 if shuffled else 0.193, 'greedy', shuffled=shuffled)
  rows = []
  for i in range(40):
    rows.append(
      {
        'id': f'p{i:02}',
        'references': ['a dog', EVIL],
        'hypothesis': 'A dog.' if i < 9 else f'a {EVIL}',
        'score': -float(i),
      }
    )
  runs.write_jsonl(tmp_path / 'predictions' / 'test-a-20.jsonl', rows)
  return tmp_path


def test_a_page_stands_alone_and_lets_no_text_become_markup(run_folder):
  page = write_report(run_folder, lambda identity: {'image': picture(64, 32)}).read_text()
  tags = _Tags(page).found
  assert (
    not {tag for tag, _ in tags} & {'link', 'iframe', 'img'}
    and EVIL not in page
    and '&lt;script&gt;' in page
  )
  assert not any('src' in attributes for _, attributes in tags)
  data = data_of(page)
  assert {media['picture'] for media in data['media'].values()} == {
    'data:image/png;base64,' + base64.b64encode(picture(64, 32)).decode()
  }
  assert (
    len(data['media']) == 40 and data['groups'][0]['rows'][20]['answers'][0]['text'] == f'a {EVIL}'
  )
  assert 'http' not in page and 'url(' not in page


def test_small_pictures_are_not_blurred_and_broken_ones_are_no_pictures(run_folder):
  data = {
    'p00': picture(32, 32),
    'p01': picture(500, 375, 'PNG'),
    'p02': b'not a picture',
    'p03': picture(90, 90, 'TIFF'),
  }
  page = write_report(run_folder, lambda identity: {'image': data.get(identity)}).read_text()
  media = data_of(page)['media']
  assert {name: (m['small'], m['picture'].split(';')[0]) for name, m in media.items() if m} == {
    'p00': (True, 'data:image/png'),
    'p01': (False, 'data:image/jpeg'),
    'p03': (False, 'data:image/jpeg'),
  }
  with Image.open(io.BytesIO(base64.b64decode(media['p01']['picture'].partition(',')[2]))) as image:
    assert image.size == (256, 192)


def test_a_page_shows_how_each_score_was_decoded_with_shuffled_pictures_beside(run_folder):
  page = write_report(run_folder).read_text()
  table = page[page.index('<h2 id="scores"') : page.index('<h2 id="curves"')]
  header, row = re.findall('<tr>(.*?)</tr>', table, re.DOTALL)
  columns = []
  for column in header.split('<th scope="col">')[1:]:
    columns.append(re.sub(r'<.*?>|\s+', ' ', column).split())
  beam = ['test-a', 'beam', '4']
  greedy = ['test-a', 'greedy']
  shuffled = ['inputs', 'shuffled']
  size = ['40', 'examples,', 'step', '20']
  assert columns == [beam + size, beam + shuffled + size, greedy + size, greedy + shuffled + size]
  assert re.findall('<b>(.*?)</b>', row) == ['0.213', '0.051', '0.193', '0.061']
  assert '<small>0.203 to 0.223</small>' in row
  assert 'model.width' in page and 'versions.jax' in page


def plots_of(page) -> dict:
  """{name: [points of a line]}"""
  curves = page[page.index('<h2 id="curves"') : page.index('<h2 id="pred')]
  parts = re.split(r'<figure class="box".*?><figcaption><b>(.*?)</b>', curves)
  result = {}
  for name, part in zip(parts[1::2], parts[2::2]):
    result[name] = [
      [tuple(map(float, point.split(','))) for point in line.split()]
      for line in re.findall(r'<polyline.*? points="(.*?)"', part)
    ]
  return result


def test_a_page_draws_train_and_valid_loss_together_and_what_was_validated(run_folder):
  page = write_report(run_folder).read_text()
  plots = plots_of(page)
  assert list(plots) == ['loss', 'perplexity', 'bleu_4'] and 'nan' not in page
  assert [[len(line) for line in lines] for lines in plots.values()] == [[250, 1], [1], [1]]
  train, [valid] = plots['loss']
  assert train == sorted(train) and train[-1][1] > train[0][1] > valid[1]
  assert valid[0] == plots['bleu_4'][0][0][0] == pytest.approx(train[-1][0] / 2, rel=0.01)


def test_splits_of_validation_are_lines_of_one_plot(run_folder):
  rows = []
  for step in (5, 10):
    rows.append({'step': step, 'kind': 'valid', 'easy/loss': 1.0, 'hard/loss': 2.0})
  runs.write_jsonl(run_folder / 'metrics.jsonl', rows)
  page = write_report(run_folder).read_text()
  [(easy, hard)] = plots_of(page).values()
  assert easy[0][1] > hard[0][1] and '● easy' in page and '● hard' in page


def test_a_page_holds_all_predictions_of_a_few_and_the_best_and_worst_of_many(
  run_folder, monkeypatch
):
  asked = []
  rows = data_of(write_report(run_folder, asked.append).read_text())['groups'][0]['rows']
  assert [row['id'] for row in rows] == [f'p{i:02}' for i in range(40)] and sorted(asked) == sorted(
    row['id'] for row in rows
  )
  assert [row['answers'][0]['exact'] for row in rows] == [True] * 9 + [False] * 31
  monkeypatch.setattr(examples, 'MOST_PREDICTIONS', 18)
  group, again = (data_of(write_report(run_folder).read_text())['groups'][0] for _ in range(2))
  ids = {row['id'] for row in group['rows']}
  assert group == again and group['total'] == 40 and len(ids) == 18
  assert (
    len(ids & {f'p{i:02}' for i in range(9)}) >= 6
    and len(ids - {f'p{i:02}' for i in range(9)}) >= 6
  )


def test_the_model_is_asked_about_a_third_each_of_the_best_the_worst_and_others(run_folder):
  asked = []
  exact = {f'p{i:02}' for i in range(9)}

  def find_attention(ids, name):
    asked.append((ids, name))
    return {
      ids[0]: {'hypothesis': 'A dog.', 'n_best': [('A dog.', -1.0), ('a cat', -2.0)]},
      ids[8]: {'hypothesis': 'other words', 'n_best': [('x', 0.0), ('y', 0.0)]},
    }

  ((ids, name),) = [write_report(run_folder, find_attention=find_attention) and asked[0]]
  assert (
    name == 'test-a-20'
    and len(set(ids)) == SAMPLE_SIZE
    and set(ids[:8]) <= exact
    and not set(ids[8:16]) & exact
  )
  rows = {}
  for row in data_of((run_folder / 'report.html').read_text())['groups'][0]['rows']:
    rows[row['id']] = row['answers'][0]
  assert (
    rows[ids[0]]['n_best'] == [['A dog.', -1.0], ['a cat', -2.0]] and 'n_best' not in rows[ids[8]]
  )  # of other words than the file


@pytest.mark.parametrize(
  'names, shown',
  [
    (['test-a-5', 'test-a-20', 'test-a-20-greedy', 'test-a-30-shuffled'], ['test-a-20']),
    (['test-a-5', 'test-a-20-greedy', 'test-a-20-greedy-shuffled'], ['test-a-20-greedy']),
    (['test-a-100', 'test-a-20', 'test-2014-7-sample'], ['test-2014-7-sample', 'test-a-100']),
    (
      [
        'test-9',
        'test-9-text_from_b_test-20',
        'test-9-text_from_b_test-20-shuffled',
        'test-7-text_from_b_test-20',
      ],
      ['test-9', 'test-9-text_from_b_test-20'],
    ),
  ],
)
def test_a_page_takes_the_newest_predictions_of_each_split(tmp_path, names, shown):
  for name in names:
    row = {'id': f'of {name}', 'hypothesis': 'x', 'references': ['x'], 'score': 0.0}
    runs.write_jsonl(tmp_path / 'predictions' / f'{name}.jsonl', [row])
  asked = []
  page = write_report(tmp_path, asked.append).read_text()
  assert (
    asked
    == [f'of {name}' for name in shown]
    == [f'of {group["name"]}' for group in data_of(page)['groups']]
  )


def test_a_new_run_gets_a_page_that_says_what_is_missing(tmp_path):
  page = write_report(tmp_path).read_text()
  assert 'No scores yet' in page and 'No metrics yet' in page and 'No predictions yet' in page


def label_run(folder, task='classification'):
  """A run that says 'positive' of ten examples, nine of them rightly, and eight with their sound
  taken away.
  """
  runs.write_json(
    folder / 'config.json', {'name': 'Labels', 'task': task, 'model': {'encoders': {'text': {}}}}
  )
  said = {
    'hypothesis': 'positive',
    'score': 0.9,
    'probabilities': {'negative': 0.1, 'positive': 0.9},
  }
  if task == 'regression':
    said = {'hypothesis': '1.5000', 'score': 1.5}
  if task == 'classification':
    labels = ['positive'] * 9 + ['negative']
  else:
    labels = ['1.0'] * 10
  rows = []
  for i, label in enumerate(labels):
    rows.append({'id': f'v{i}', **said, 'references': [label], 'input': {'text': f'sentence {i}'}})
  runs.write_jsonl(folder / 'predictions' / 'test-5.jsonl', rows)
  curve = []
  for share in range(11):
    curve.append({'share': share / 10, 'value': 0.9 - share / 100, 'low': 0.7, 'high': 0.9})
  runs.write_json(
    folder / 'ablation' / 'test.json',
    {'split': 'test', 'step': 5, 'rows': [], 'missing': {'audio': {'accuracy': curve}}},
  )
  return folder


def test_a_page_of_classes_has_their_confusions_and_what_was_read(tmp_path):
  page = write_report(label_run(tmp_path)).read_text()
  table = page[page.index('<h2>Confusions') : page.index('<h2 id="predictions"')]
  assert re.findall(r'<t[hd]>(.*?)</t[hd]>', table) == [
    'reference \\ predicted',
    'negative',
    'positive',
    'negative',
    '0',
    '1',
    'positive',
    '0',
    '9',
  ]
  data = data_of(page)
  rows = data['groups'][0]['rows']
  assert (
    sum(row['answers'][0]['exact'] for row in rows) == 9
    and rows[9]['answers'][0]['summary'] == 'correct class 0.10, predicted class 0.90'
  )
  assert rows[9]['text'] == 'sentence 9' and rows[9]['answers'][0]['probabilities'] == [
    ['positive', 0.9],
    ['negative', 0.1],
  ]
  assert not data['pictures'] and not data['media']


def test_a_page_of_scores_says_how_far_they_are_off(tmp_path):
  page = write_report(label_run(tmp_path, 'regression')).read_text()
  assert page.count('off by 0.50') == 10 and 'Confusions' not in page


def test_a_page_draws_what_missing_inputs_cost_two_runs(tmp_path):
  mine = label_run(tmp_path / 'mine')
  other = label_run(tmp_path / 'other')

  def lines(page):
    return re.findall(r'<polyline.*?points="(.*?)"', page)

  alone, both = (write_report(mine, against=against).read_text() for against in (None, other))
  assert 'accuracy, test: without audio' in both and [
    len(lines(page)) for page in (alone, both)
  ] == [1, 2]
  heights = [float(point.split(',')[1]) for point in lines(alone)[0].split()]
  assert len(heights) == 11 and heights == sorted(heights) and str(other) in both
  (other / 'ablation' / 'test.json').unlink()
  with pytest.raises(UserError, match='no ablation study yet'):
    write_report(mine, against=other)


def test_no_run_folder_is_said(tmp_path):
  with pytest.raises(UserError, match='nowhere: no such run folder'):
    write_report(tmp_path / 'nowhere')


@pytest.fixture
def project(tmp_path):
  tables.add_rows(tmp_path / 'experiments/results/captioning.json', [ROW])
  (tmp_path / 'README.md').write_text(
    '# A\n<!-- results:captioning -->\nstale\n<!-- /results -->\nend\n'
  )
  return tmp_path


def test_tables_fill_both_pages_and_nothing_else(project):
  tables.write_tables(project)
  readme = (project / 'README.md').read_text()
  row = (
    '| frozen grid, beam 4 | Flickr8k test | BLEU-4 (%) | 19.5 (Xu et al.) | 22.13 '
    '| 21.00 to 23.26 |'
  )
  assert (
    '| ours, frozen grid, beam 4 | Flickr8k test | 22.13 [21.00 to 23.26] |' in readme.splitlines()
    and 'stale' not in readme
  )
  assert '| Xu et al. | Flickr8k test | 19.5 |' in readme.splitlines()
  assert readme.startswith('# A\n<!-- results:captioning -->\n\n|')
  assert readme.endswith('|\n\n<!-- /results -->\nend\n')
  page = (project / 'experiments/README.md').read_text()
  assert (
    row in page
    and '- BLEU-4 (%): corpus BLEU' in page
    and '0123456789abc ' in page
    and '1.5 h' in page
  )
  tables.write_tables(project)
  assert (project / 'README.md').read_text() == readme


def test_a_grid_has_a_line_a_system_and_a_column_a_variant(tmp_path):
  cells = {'gated, text': 1, 'late, text': 2, 'gated, text+audio': 3}
  measured = []
  for name, value in cells.items():
    measured.append(
      ROW | {'row': name, 'ours': float(value), 'published': 19.5 if value == 3 else None}
    )
  tables.add_rows(tmp_path / 'experiments/results/fusions.json', measured)
  (tmp_path / 'README.md').write_text('<!-- grid:fusions -->\n<!-- /results -->\n')
  tables.write_tables(tmp_path)
  lines = (tmp_path / 'README.md').read_text().splitlines()
  assert lines[2:] == [
    '| BLEU-4 (%) | text | text+audio |',
    '| --- | --- | --- |',
    '| published |  | 19.5 (Xu et al.) |',
    '| gated | 1.000 | 3.000 |',
    '| late | 2.000 |  |',
    '',
    '<!-- /results -->',
  ]


def test_nothing_published_leaves_its_cell_empty():
  line = tables.result_table([ROW | {'published': None}]).splitlines()[-1]
  assert line.split('|')[4].strip() == '' and line.split('|')[5].strip() == '22.13'


def test_added_rows_replace_their_own_and_keep_the_others(project):
  path = project / 'experiments/results/captioning.json'
  greedy = ROW | {'row': 'greedy'}
  tables.add_rows(path, [greedy, ROW | {'ours': 23.5, 'spread': 0.4, 'n': 3}])
  rows = json.loads(path.read_text())
  assert [(row['row'], row['ours']) for row in rows] == [
    ('frozen grid, beam 4', 23.5),
    ('greedy', 22.126),
  ]
  assert '23.50 ± 0.40 (n = 3)' in tables.result_table(rows)


@pytest.mark.parametrize(
  'change, message',
  [
    ({'ours': '22'}, r"\(frozen grid, beam 4\): 'ours' must be a number"),
    ({'ours': float('nan')}, "'ours'"),
    ({'n': True}, "'n'"),
    ({'ours': True}, "'ours'"),
    ({'interval': [1]}, "'interval' must be .low, high. or null"),
    ({'seconds': None}, "'seconds'"),
    ({'commit': ''}, "'commit'"),
    ({'extra': 1}, "unknown key 'extra'"),
  ],
)
def test_a_wrong_row_is_named_and_the_file_kept(project, change, message):
  path = project / 'experiments/results/captioning.json'
  before = path.read_text()
  with pytest.raises(UserError, match=message):
    tables.add_rows(path, [ROW | change])
  assert path.read_text() == before
  path.write_text(json.dumps([ROW, ROW | change]))
  with pytest.raises(UserError, match=f'captioning.json, row 2.*{message}'):
    tables.write_tables(project)


def test_a_missing_key_is_named(project):
  with pytest.raises(UserError, match="missing key 'source'"):
    tables.add_rows(
      project / 'x.json', [{key: value for key, value in ROW.items() if key != 'source'}]
    )


@pytest.mark.parametrize(
  'readme, message',
  [
    ('<!-- results:other -->\n<!-- /results -->', 'results:other'),
    ('<!-- results:captioning -->\n', 'needs its own'),
    (
      '<!-- results:captioning -->\n<!-- results:captioning -->\n<!-- /results -->',
      'needs its own',
    ),
  ],
)
def test_wrong_blocks_are_said_and_leave_the_readme(project, readme, message):
  (project / 'README.md').write_text(readme)
  with pytest.raises(UserError, match=message):
    tables.write_tables(project)
  assert (project / 'README.md').read_text() == readme
