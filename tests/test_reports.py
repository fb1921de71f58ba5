import base64
import html.parser
import json
import re

import pytest

from mmlm import runs
from mmlm.errors import UserError
from mmlm.reports import tables
from mmlm.reports.html import SAMPLE, write_report

PNG = b'\x89PNG\r\n\x1a\n...'
EVIL = '<script>alert("x")</script>'
ROW = {'row': 'frozen grid, beam 4', 'dataset': 'Flickr8k', 'split': 'test', 'metric': 'BLEU-4 (%)',
       'definition': 'corpus BLEU', 'published': 19.5, 'source': 'Xu et al.', 'ours': 22.126,
       'spread': None, 'n': 1, 'interval': [21.0, 23.26], 'config': 'flickr8k.py',
       'command': './launch.sh train flickr8k.py',
       'commit': '0123456789abcdef', 'hardware': '2 cores', 'seconds': 5400}


class _Tags(html.parser.HTMLParser):
  def __init__(self, text):
    super().__init__()
    self.found = []
    self.feed(text)

  def handle_starttag(self, tag, attributes):
    self.found.append((tag, dict(attributes)))


def score_file(split, value):
  return {'split': split, 'step': 20, 'decoding': {'beam': 4}, 'n': 40, 'seconds': 1.0,
          'scores': {'bleu_4': {'value': value, 'low': value - 0.01, 'high': value + 0.01}}}


@pytest.fixture
def run_folder(tmp_path):
  runs.write_json(tmp_path / 'config.json', {'name': 'Tiny', 'seed': 1, 'model': {'width': EVIL}})
  runs.write_json(tmp_path / 'environment.json', {'versions': {'jax': '0.10'}})
  rows = [{'step': step, 'kind': 'train', 'loss': 5.0 / step, 'rate': 1.0} for step in range(1, 1001)]
  rows += [{'step': 500, 'kind': 'dev', 'loss': 3.0, 'bleu_4': 0.1},
           {'step': 1000, 'kind': 'dev', 'bleu_4': float('nan')}]
  runs.write_jsonl(tmp_path / 'metrics.jsonl', rows)
  runs.write_json(tmp_path / 'scores' / 'test-20.json', score_file('test', 0.213))
  runs.write_json(tmp_path / 'scores' / 'test-shuffled-20.json', score_file('test-shuffled', 0.051))
  rows = [{'id': f'p{i:02}', 'references': ['a dog', EVIL], 'hypothesis': 'A dog.' if i < 9 else f'a {EVIL}',
           'score': -float(i)} for i in range(40)]
  runs.write_jsonl(tmp_path / 'predictions' / 'test-20.jsonl', rows)
  runs.write_jsonl(tmp_path / 'predictions' / 'test-5.jsonl', [{'id': 'old', 'hypothesis': 'x'}])
  runs.write_jsonl(tmp_path / 'predictions' / 'test-shuffled-20.jsonl', rows[:3])
  return tmp_path


def test_a_page_stands_alone_and_lets_no_text_become_markup(run_folder):
  page = write_report(run_folder, lambda identity: PNG).read_text()
  tags = _Tags(page).found
  names = {tag for tag, _ in tags}
  assert not names & {'script', 'link', 'iframe'} and EVIL not in page
  sources = [attributes['src'] for tag, attributes in tags if tag == 'img']
  assert sources == ['data:image/png;base64,' + base64.b64encode(PNG).decode()] * SAMPLE
  assert 'http' not in page and 'url(' not in page


def test_a_page_shows_scores_with_shuffled_beside_and_intervals(run_folder):
  page = write_report(run_folder).read_text()
  assert page.index('<th>test<br>') < page.index('<th>test-shuffled<br>')
  assert re.search(r'bleu_4<td><b>0\.213</b><small>0\.203 to 0\.223</small><td><b>0\.051</b>', page)
  assert 'model.width' in page and 'versions.jax' in page


def test_a_page_draws_the_train_loss_and_what_was_validated(run_folder):
  page = write_report(run_folder).read_text()
  assert re.findall(r'<div class=box><b>(.*?)</b>', page) == ['loss', 'bleu_4']
  lines = re.findall(r'<polyline class=s\d points="(.*?)"', page)
  assert [len(line.split()) for line in lines] == [250, 1, 1]
  heights = [float(point.split(',')[1]) for point in lines[0].split()]
  assert heights == sorted(heights) and 'nan' not in page


def test_a_page_samples_the_newest_predictions_and_marks_exact_ones(run_folder):
  asked = []
  page = write_report(run_folder, asked.append).read_text()
  assert len(set(asked)) == SAMPLE and 'old' not in asked
  best, worst = asked[:8], asked[8:16]
  exact_ids = {f'p{i:02}' for i in range(9)}
  assert set(best) <= exact_ids and not set(worst) & exact_ids
  exact = len(set(asked) & exact_ids)
  assert page.count('✓ exact') == exact >= 8 and 'no picture' in page
  again = []
  write_report(run_folder, again.append)
  assert again == asked


def test_a_new_run_gets_a_page_that_says_what_is_missing(tmp_path):
  page = write_report(tmp_path).read_text()
  assert 'No scores yet' in page and 'No metrics yet' in page and 'No predictions yet' in page


def test_no_run_folder_is_said(tmp_path):
  with pytest.raises(UserError, match='nowhere: no such run folder'):
    write_report(tmp_path / 'nowhere')


@pytest.fixture
def project(tmp_path):
  tables.add_rows(tmp_path / 'experiments/results/captioning.json', [ROW])
  (tmp_path / 'README.md').write_text('# A\n<!-- results:captioning -->\nstale\n<!-- /results -->\nend\n')
  return tmp_path


def test_tables_fill_both_pages_and_nothing_else(project):
  tables.write_tables(project)
  readme = (project / 'README.md').read_text()
  row = '| frozen grid, beam 4 | Flickr8k test | BLEU-4 (%) | 19.5 (Xu et al.) | 22.13 | 21.00 to 23.26 |'
  assert row in readme.splitlines() and 'stale' not in readme
  assert readme.startswith('# A\n<!-- results:captioning -->\n|')
  assert readme.endswith('|\n<!-- /results -->\nend\n')
  page = (project / 'experiments/README.md').read_text()
  assert row in page and '- BLEU-4 (%): corpus BLEU' in page and '0123456789ab ' in page and '1.5 h' in page
  tables.write_tables(project)
  assert (project / 'README.md').read_text() == readme


def test_added_rows_replace_their_own_and_keep_the_others(project):
  path = project / 'experiments/results/captioning.json'
  greedy = ROW | {'row': 'greedy'}
  tables.add_rows(path, [greedy, ROW | {'ours': 23.5, 'spread': 0.4, 'n': 3}])
  rows = json.loads(path.read_text())
  assert [(row['row'], row['ours']) for row in rows] == [('frozen grid, beam 4', 23.5), ('greedy', 22.126)]
  assert '23.50 ± 0.40 (n = 3)' in tables.result_table(rows)


@pytest.mark.parametrize('change, message', [
  ({'ours': '22'}, r"\(frozen grid, beam 4\): 'ours' must be a number"),
  ({'ours': float('nan')}, "'ours'"), ({'n': True}, "'n'"), ({'ours': True}, "'ours'"),
  ({'interval': [1]}, "'interval' must be .low, high. or null"),
  ({'seconds': None}, "'seconds'"), ({'commit': ''}, "'commit'"), ({'extra': 1}, "unknown key 'extra'"),
])
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
    tables.add_rows(project / 'x.json', [{key: value for key, value in ROW.items() if key != 'source'}])


@pytest.mark.parametrize('readme, message', [
  ('<!-- results:other -->\n<!-- /results -->', 'results:other'),
  ('<!-- results:captioning -->\n', 'needs its own'),
  ('<!-- results:captioning -->\n<!-- results:captioning -->\n<!-- /results -->', 'needs its own'),
])
def test_wrong_blocks_are_said_and_leave_the_readme(project, readme, message):
  (project / 'README.md').write_text(readme)
  with pytest.raises(UserError, match=message):
    tables.write_tables(project)
  assert (project / 'README.md').read_text() == readme
