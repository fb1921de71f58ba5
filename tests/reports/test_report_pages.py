"""Pages of runs, of several runs and of sweeps, in a browser and without one."""

import functools
import time

import numpy as np
import pytest
from browser import browser, visit  # noqa: F401 fixtures
from program import read_jsonl, refused, write_jsonl
from report_folders import EVIL, caption_run, photo, swept
from test_reports import data_of
from test_speech_report import sound

from mmlm.reports import media as reported
from mmlm.reports.build import report
from mmlm.reports.comparison_page import differences, short_names, write_comparison
from mmlm.reports.run_page import write_report
from mmlm.reports.sweep_page import axes_of, importance_of, write_sweep
from mmlm.utils import run_dir as runs
from mmlm.utils.errors import UserError

# A page in a browser


@pytest.fixture(scope='module')
def captions(tmp_path_factory):
  """The page of a run of captions on photos and sounds, 60 predictions."""
  folder = caption_run(tmp_path_factory.mktemp('captions') / 'run')
  runs.write_json(
    folder / 'config.json',
    runs.read_json(folder / 'config.json') | {'model': {'encoders': {'image': {}, 'audio': {}}}},
  )
  return write_report(
    folder, lambda identity: {'image': photo(int(identity[1:5])), 'audio': sound(0.3)}
  )


def shown(page) -> int:
  return page.locator('#examples > li').count()


def test_a_page_opens_and_its_pictures_and_sounds_load(visit, captions):  # noqa: F811
  page = visit(captions)
  assert shown(page) == 50 and page.locator('#count').inner_text() == '60 of 60 predictions'
  assert (
    page.evaluate(
      "Promise.all([...document.querySelectorAll('.picture img')].slice(0, 5).map(i => "
      'i.decode().then(() => i.naturalWidth)))'
    )
    == [256] * 5
  )
  length = (
    "new Promise((good, bad) => { const a = document.querySelector('audio'); "
    'a.onloadedmetadata = () => good(a.duration); a.onerror = bad; a.load() })'
  )
  assert page.evaluate(length) == pytest.approx(0.3, abs=0.01)
  assert (
    page.locator('#page').inner_text() == 'page 1 of 2' and page.locator('#previous').is_disabled()
  )
  page.click('#next')
  assert shown(page) == 10 and page.locator('#next').is_disabled()


def test_filters_and_orders_choose(visit, captions):  # noqa: F811
  page = visit(captions)
  rows = data_of(captions.read_text())['groups'][0]['rows']
  values = [row['answers'][0]['value'] for row in rows]

  def first():
    return page.locator('#examples > li:first-child').inner_text()

  def wait(count):
    return page.wait_for_function(
      f"document.getElementById('count').textContent.startsWith('{count} of')"
    )

  assert rows[int(np.argmin(values))]['answers'][0]['summary'].split('·')[0].strip() in first()
  page.select_option('#order', 'best first')
  assert '✓ exact' in first()
  page.select_option('#order', 'as in the file')
  assert 'p0000.jpg' in first()
  page.fill('#search', 'P0042')
  wait(1)
  assert page.locator('mark').inner_text() == 'p0042' and 'p0042.jpg' in first()
  page.fill('#search', 'script')  # a text that would be markup is text
  wait(1)
  assert EVIL in page.locator('dd', has_text='<script>').first.inner_text()
  page.fill('#search', '')
  wait(60)
  page.check('#wrong')
  wait(40)
  page.uncheck('#wrong')
  page.fill('#most', '0.7')
  wait(sum(value <= 0.7 for value in values))
  page.fill('#least', '2')
  wait(0)


def test_keys_walk_through_the_examples(visit, captions):  # noqa: F811
  page = visit(captions)

  def now():
    return page.evaluate(
      "[...document.getElementById('examples').children].indexOf(document.activeElement)"
    )

  for key, where in (('j', 0), ('j', 1), ('ArrowDown', 2), ('k', 1), ('ArrowUp', 0), ('k', 0)):
    page.keyboard.press(key)
    assert now() == where
  assert page.evaluate('getComputedStyle(document.activeElement).outlineStyle') == 'solid'
  page.keyboard.press('/')
  assert page.evaluate('document.activeElement.id') == 'search'
  page.keyboard.type('j/k')  # is typed
  assert page.input_value('#search') == 'j/k'
  page.wait_for_function(
    "document.getElementById('count').textContent.startsWith('0 of')"
  )  # typing is waited out before a page is chosen
  page.keyboard.press('Escape')
  assert (
    page.evaluate('document.activeElement.id') != 'search' and page.input_value('#search') == 'j/k'
  )  # left, not emptied
  page.fill('#search', '')
  page.wait_for_function("document.getElementById('count').textContent.startsWith('60 of')")
  page.evaluate("document.querySelector('#examples > li:last-child').focus()")
  page.keyboard.press('j')
  assert page.locator('#page').inner_text() == 'page 2 of 2' and now() == 0


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_a_page_is_read_on_a_phone_in_both_colours(visit, captions, scheme):  # noqa: F811
  page = visit(captions, color_scheme=scheme, viewport={'width': 360, 'height': 740})
  assert page.evaluate('document.documentElement.scrollWidth') <= 360
  assert (
    page.evaluate(
      "new Set([...document.querySelectorAll('#examples > li')].map(li => "
      'li.getBoundingClientRect().left)).size'
    )
    == 1
  )

  def channel(key):
    return int(page.evaluate(f'getComputedStyle(document.body).{key}').split('(')[1].split(',')[0])

  assert (channel('backgroundColor') < channel('color')) == (scheme == 'dark')


def test_curves_can_be_logarithmic_and_tell_their_values(visit, captions):  # noqa: F811
  page = visit(captions)

  def points():
    result = []
    for pair in page.locator('[data-plot="0"] polyline').first.get_attribute('points').split():
      result.append(float(pair.split(',')[1]))
    return result

  before = points()
  page.check('#logarithmic')
  steep = points()
  assert (
    len(steep) == len(before) and steep[0] == before[0] and np.mean(steep) < np.mean(before) - 10
  )  # 5 / step hugs the floor
  page.uncheck('#logarithmic')
  assert points() == pytest.approx(before, abs=0.11)
  page.locator('[data-plot="0"] svg').hover()
  assert 'train' in page.locator('[data-plot="0"] .readout').inner_text()


def test_a_thousand_predictions_with_pictures_open_fast_and_are_small(visit, tmp_path, monkeypatch):  # noqa: F811
  monkeypatch.setattr(
    reported, 'thumbnail', functools.cache(reported.thumbnail)
  )  # of twenty photos, each of which stands there fifty times
  photos = [photo(i) for i in range(20)]
  path = write_report(
    caption_run(tmp_path / 'run', 1000), lambda identity: {'image': photos[int(identity[1:5]) % 20]}
  )
  media = data_of(path.read_text())['media'].values()
  assert (
    len(media) == 1000
    and all(m['picture'].startswith('data:image/jpeg') for m in media)
    and path.stat().st_size < 25 << 20
  )
  began = time.monotonic()
  page = visit(path)
  assert shown(page) == 50 and page.locator('#count').inner_text() == '1,000 of 1,000 predictions'
  told = page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd")
  assert 0 < told < 2000 or time.monotonic() - began < 2, told


def test_what_does_not_fit_is_left_out_and_said(visit, tmp_path, monkeypatch):  # noqa: F811
  monkeypatch.setattr(reported, 'LARGEST_MEDIA', 60_000)
  path = write_report(
    caption_run(tmp_path / 'run'), lambda identity: {'image': photo(int(identity[1:5]))}
  )
  assert path.stat().st_size < 200_000
  page = visit(path)
  assert (
    page.locator('.picture img').count() > 0
    and 'the page would grow too large' in page.locator('.none').first.inner_text()
  )


# Several runs


@pytest.fixture
def pair(tmp_path):
  result = []
  for seed, name in enumerate(('one', 'two')):
    result.append(caption_run(tmp_path / name, seed=seed, width=32 * (seed + 1)))
  return result


def test_runs_stand_over_one_another_and_side_by_side(visit, pair):  # noqa: F811
  path = write_comparison(pair)
  assert path == pair[0] / 'comparison.html'
  data = data_of(path.read_text())
  assert data['runs'] == ['one', 'two'] and len(data['groups'][0]['rows']) == 60
  kept = {row['id']: row for row in data['groups'][0]['rows']}
  for number, folder in enumerate(pair):
    for row in read_jsonl(folder / 'predictions' / 'test-100.jsonl'):
      assert kept[row['id']]['answers'][number]['text'] == row['hypothesis']
  page = visit(path)
  assert page.locator('[data-plot="0"] .legend span').all_inner_texts() == [
    '● one, train',
    '● one, valid',
    '● two, train',
    '● two, valid',
  ]
  assert page.locator('.differing').first.locator('th[scope=row]').all_inner_texts() == [
    'seed',
    'model.width',
  ]
  assert page.locator('h3 + .box td b').all_inner_texts() == ['0.200', '0.210']
  first = page.locator('#examples > li').first.locator('.answer')
  assert (
    first.count() == 2 and first.nth(0).inner_text() != first.nth(1).inner_text()
  )  # the most different first
  page.select_option('#order', 'best first')
  page.fill('#search', 'p0003')
  page.wait_for_function("document.getElementById('count').textContent.startsWith('1 of')")


def test_runs_that_cannot_stand_side_by_side(pair, tmp_path):
  other = caption_run(tmp_path / 'other', task='translation')
  assert f'{other}: translation' in refused('report', pair[0], other)
  write_jsonl(
    pair[1] / 'predictions' / 'test-100.jsonl',
    [{'id': 'p0000.jpg', 'references': ['else'], 'hypothesis': 'x', 'score': 0.0}],
  )
  with pytest.raises(UserError, match="references of 'p0000.jpg' differ between one and two"):
    write_comparison(pair)
  write_jsonl(
    pair[1] / 'predictions' / 'test-100.jsonl',
    [{'id': 'q', 'references': ['else'], 'hypothesis': 'x', 'score': 0.0}],
  )
  with pytest.raises(UserError, match='no example in common'):
    write_comparison(pair)
  (pair[1] / 'predictions' / 'test-100.jsonl').rename(pair[1] / 'predictions' / 'other-100.jsonl')
  page = write_comparison(pair).read_text()
  assert 'No split was decoded by all' in page and 'test is not shown: not decoded by two' in page


def test_names_and_differences_of_runs(tmp_path):
  assert list(short_names([tmp_path / 'a' / 'x', tmp_path / 'b' / 'x'])) == ['a/x', 'b/x'] and list(
    short_names(['runs/x', 'runs/y'])
  ) == ['x', 'y']
  rows = differences(
    {'a': {'m': {'d': 1, 'e': ''}, 's': 0}, 'b': {'m': {'d': 2, 'e': 'x', 'f': 3}, 's': 0}}
  )
  assert rows == [('m.d', ['1', '2']), ('m.e', ["''", 'x']), ('m.f', ['(absent)', '3'])]


# Sweeps


def test_a_sweep_is_drawn(visit, tmp_path):  # noqa: F811
  folder = swept(tmp_path / 'sweep')
  report([str(folder)], {})
  rows = runs.read_json(folder / 'results.json')
  finished = sorted(
    (row for row in rows if row['state'] == 'complete'), key=lambda row: -row['score']
  )
  page = visit(folder / 'report.html')
  assert (
    page.locator('.parallel polyline').count() == len(finished)
    and page.locator('.scatter').count() == 4
  )
  assert page.locator('.scatter').first.locator('circle').count() == len(finished)
  assert (
    f'trial {finished[0]["trial"]}:' in page.locator('.parallel polyline title').last.text_content()
  )
  best = page.locator('#best + .box tr th[scope=row]').all_inner_texts()
  assert best == [str(row['trial']) for row in finished[:20]]
  others = page.locator('#others + .box tr')
  assert (
    others.count() == 1 + len(rows) - len(finished)
    and EVIL in page.locator('#others + .box').inner_text()
  )
  assert (
    page.locator('.bars th').first.inner_text() == 'optimizer.learning_rate'
    and page.locator('[data-plot]').count() == 2
  )


def test_axes_are_in_order_and_logarithmic_where_values_are():
  rows = []
  for i in range(5):
    rows.append(
      {
        'trial': i,
        'score': float(i),
        'settings': {'rate': repr(10.0**-i), 'dropout': repr(0.01 + 0.1 * i), 'name': 'ab'[i % 2]},
      }
    )
  del rows[4]['settings']['name']
  rate, dropout, name, score = axes_of(rows, 'bleu')
  assert [rate['log'], dropout['log'], name['log'], score['log']] == [True, False, False, False]
  assert [rate['place'][i] for i in range(5)] == pytest.approx([1, 0.75, 0.5, 0.25, 0])
  assert [dropout['place'][i] for i in range(5)] == pytest.approx([0, 0.25, 0.5, 0.75, 1])
  assert name['place'] == {0: 0.25, 1: 0.75, 2: 0.25, 3: 0.75} and name['ticks'] == [
    (0.25, 'a'),
    (0.75, 'b'),
  ]


def test_importance_is_read_from_a_journal_that_is_written(tmp_path):
  folder = swept(tmp_path / 'sweep')
  found, why = importance_of(folder)
  assert (
    not why
    and sum(value for _, value in found) == pytest.approx(1)
    and {name for name, _ in found} >= {'model.layers', 'model.dropout'}
  )
  with open(folder / 'journal.log', 'a') as file:
    file.write('{"half')
  before = (folder / 'journal.log').read_bytes()
  assert importance_of(folder) == (found, why) and (folder / 'journal.log').read_bytes() == before
  with open(folder / 'journal.log', 'a') as file:
    file.write('\n')
  assert 'Optuna cannot compute importances' in importance_of(folder)[1]
  (folder / 'journal.log').unlink()
  assert (
    importance_of(folder) == ([], 'The journal of optuna is missing.')
    and not (folder / 'journal.log').exists()
  )


def test_a_sweep_without_a_score_says_so_and_names_what_failed(visit, tmp_path):  # noqa: F811
  page = visit(write_sweep(swept(tmp_path / 'sweep', 3, score=False)))
  assert (
    'No trial has a score yet' in page.locator('main').inner_text()
    and page.locator('#others + .box tr').count() == 4
  )


@pytest.mark.parametrize(
  'content, says',
  [
    (None, 'no trial of this sweep has ended yet'),
    ('[]', 'no trial in it'),
    ('[{"trial": 0}]', "row 0: no 'state' in it"),
    ('[{', 'not JSON'),
  ],
)
def test_results_that_cannot_be_read(tmp_path, content, says):
  runs.write_json(tmp_path / 'sweep.json', {})
  if content is not None:
    (tmp_path / 'results.json').write_text(content)
  assert says in refused('report', tmp_path)


# Bad input


@pytest.mark.parametrize(
  'file, content, says',
  [
    (
      'predictions/test-100.jsonl',
      '{"id": "a"}\n',
      "test-100.jsonl, line 1: no 'hypothesis' in it",
    ),
    (
      'predictions/test-100.jsonl',
      '{"id": "a", "hypothesis": "x", "references": ["x"], "score": 0}\n{"id": \n',
      'test-100.jsonl, line 2: not JSON',
    ),
    (
      'metrics.jsonl',
      '{"step": 1, "kind": "train"}\n[1]\n',
      "metrics.jsonl, line 2: no 'step' in it",
    ),
    ('metrics.jsonl', 'loss\n', 'metrics.jsonl, line 1: not JSON'),
    ('scores/test-100.json', '{"split": "test"}', "test-100.json: no 'step' in it"),
    ('scores/test-100.json', '[]', 'test-100.json: expected an object'),
    ('config.json', '{', 'config.json, line 2, column 1: not JSON'),
    (
      'ablation/test.json',
      '{"missing": {"image": {"bleu_4": [1]}}}',
      'ablation/test.json: not a file that `ablate` writes',
    ),
  ],
)
def test_damaged_files_are_named(tmp_path, file, content, says):
  folder = caption_run(tmp_path / 'run', 6)
  (folder / file).parent.mkdir(exist_ok=True)
  (folder / file).write_text(content + '\n' * (file == 'config.json'))
  with pytest.raises(UserError) as error:
    write_report(folder)
  assert says in str(error.value) and not (folder / 'report.html').exists()
  with pytest.raises(
    UserError, match='test-100.jsonl|metrics.jsonl|test-100.json|config.json|test.json'
  ):
    write_comparison([folder, caption_run(tmp_path / 'other', 6)])


def test_predictions_of_another_task_are_named(tmp_path):
  folder = caption_run(tmp_path / 'run', 6, task='classification')
  with pytest.raises(UserError, match='not those of a run of Classification'):
    write_report(folder)


def test_half_a_last_line_is_left_out(tmp_path):
  folder = caption_run(tmp_path / 'run', 6)
  for name in ('predictions/test-100.jsonl', 'metrics.jsonl'):
    with open(folder / name, 'a') as file:
      file.write('{"half')
  assert len(data_of(write_report(folder).read_text())['groups'][0]['rows']) == 6


def test_what_cannot_go_together_is_refused(pair, tmp_path):
  sweep = swept(tmp_path / 'sweep', 3)
  assert 'not a run folder (no config.json) nor a sweep' in refused('report', tmp_path / 'nowhere')
  assert 'is a sweep' in refused('report', sweep, pair[0])
  assert '--against goes with one run' in refused('report', *pair, '--against', pair[0])
