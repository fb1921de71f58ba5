"""What is asked of a trained run: compare, ablate, translate, and decoding with inputs changed. One tiny run serves all."""

import io
import json
import shutil
import types

import numpy as np
import pytest
from conftest import ROOT
from program import done, read_jsonl, refused, write_jsonl

from mmlm.data.text import MASK
from mmlm.evaluation import ablation
from mmlm.experiment.experiment import Experiment
from mmlm.experiment.prediction import Condition, decode, params_of
from mmlm.reports.html import write_report
from mmlm.utils import run_dir as runs

CONFIG = ROOT / 'configs/translation/numerals.py'
STEPS = 8
SETTINGS = (
  '--config.train.duration=8 steps',
  '--config.parallel.strategy=jit',
  '--config.evaluate.metrics=("bleu","chrf")',
)


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  return tmp_path_factory.mktemp('studies')


@pytest.fixture(scope='module')
def run(place):
  """Text and picture, trained for a few steps: enough to hear what it is given."""
  done(
    'train',
    f'{CONFIG}:smoke',
    '--workdir',
    place / 'run',
    f'--config.data.dir={place / "data"}',
    *SETTINGS,
  )
  done('evaluate', place / 'run')
  return place / 'run'


@pytest.fixture(scope='module')
def text_run(place):
  done(
    'train',
    f'{CONFIG}:smoke,modalities=text',
    '--workdir',
    place / 'text',
    f'--config.data.dir={place / "data"}',
    *SETTINGS,
  )
  return place / 'text'


@pytest.fixture
def copy(run, tmp_path):
  shutil.copytree(run, tmp_path / 'copy')
  return tmp_path / 'copy'


@pytest.fixture(scope='module')
def parts(run):
  experiment = Experiment.of_run(run, {})
  params, _ = params_of(
    experiment, experiment.data.loader('test', experiment.data.table('test', False), 16)
  )
  return experiment, experiment.evaluator(), params


@pytest.fixture(scope='module')
def decoded(parts):
  """{condition: rows} of the test split."""
  conditions = (
    Condition(),
    Condition(shuffled='text'),
    Condition(shuffled='image'),
    Condition(shuffled='inputs'),
    Condition(without='image'),
  )
  result = {}
  for condition in conditions:
    result[str(condition)] = decode(*parts, 'test', condition=condition)
  return result


# Conditions


def test_a_condition_tells_itself():
  assert str(Condition()) == 'as it is'
  assert str(Condition('image', 'text', 'nouns')) == 'nouns masked, image shuffled, without text'


def test_the_run_as_it_is_decodes_what_evaluation_wrote(run, decoded):
  assert decoded['as it is'] == read_jsonl(run / 'predictions' / f'test-{STEPS}.jsonl')


@pytest.mark.parametrize(
  'condition, moved',
  [('text shuffled', 'text'), ('image shuffled', 'image'), ('inputs shuffled', 'text image')],
)
def test_a_shuffled_modality_comes_from_another_example_and_the_rest_stays(
  decoded, condition, moved
):
  whole = decoded['as it is']
  rows = decoded[condition]
  assert [(row['id'], row['references']) for row in rows] == [
    (row['id'], row['references']) for row in whole
  ]
  texts = {row['id']: row['input']['text'] for row in whole}
  for row in rows:
    read = {'text': texts[row['id']], 'image': row['id']}
    assert all(
      (row['input'][modality] == read[modality]) != (modality in moved) for modality in read
    )
  for modality in ('text', 'image'):
    assert sorted(row['input'][modality] for row in rows) == sorted(
      row['input'][modality] for row in whole
    )
  for other in decoded.keys() - {condition}:  # what the model reads, not only what is written down
    assert (
      np.mean([abs(a['score'] - b['score']) > 1e-4 for a, b in zip(decoded[other], rows)]) > 0.9
    )


def test_shuffled_inputs_are_those_of_one_other_example_together(decoded):
  """Then each row is answered as the example that it was given is, up to rounding."""
  whole = {row['id']: row for row in decoded['as it is']}
  for row in decoded['inputs shuffled']:
    other = whole[row['input']['image']]
    assert row['input'] == other['input'] and row['hypothesis'] == other['hypothesis']
    assert row['score'] == pytest.approx(other['score'], rel=1e-4)


def test_without_a_modality_its_content_does_not_matter(parts, decoded):
  """Not even that of another example."""
  without = decoded['without image']
  assert all(row['input'].keys() == {'text'} for row in without)
  assert np.mean([a['score'] != b['score'] for a, b in zip(decoded['as it is'], without)]) > 0.9
  both = decode(*parts, 'test', condition=Condition(shuffled='image', without='image'))
  assert [row['score'] for row in both] == pytest.approx([row['score'] for row in without])


def test_masked_words_are_what_the_model_reads(parts, decoded, monkeypatch):
  monkeypatch.setitem(ablation.WORDS, 'colours', ['thousand'])  # a word that the numerals have
  rows = decode(*parts, 'test', condition=Condition(masked='colours'))
  for row, whole in zip(rows, decoded['as it is'], strict=True):
    text = whole['input']['text']
    assert row['input'] == {'text': text.replace('thousand', MASK), 'image': row['id']}
    assert (row['score'] != whole['score']) == ('thousand' in text)


# Compare


def test_a_run_does_not_differ_from_itself(run):
  said = done('compare', run, run)
  path = run / 'predictions' / f'test-{STEPS}.jsonl'
  assert said.startswith(f'32 examples\n  a  {path}\n  b  {path}\n')
  scores = json.loads((run / 'scores' / f'test-{STEPS}.json').read_text())['scores']
  assert (
    len(said.splitlines()) == 5
    and said.count('a - b +0.0000 [+0.0000, +0.0000]  p 1.000') == len(scores) == 2
  )
  for name, score in scores.items():
    assert f'{name:<12} a {score["value"]:.4f}  b {score["value"]:.4f}' in said


def test_files_are_compared_by_id_in_any_order(run, tmp_path):
  rows = read_jsonl(run / 'predictions' / f'test-{STEPS}.jsonl')
  perfect = []
  for row in reversed(rows):
    perfect.append(
      {'id': row['id'], 'hypothesis': row['references'][0], 'references': row['references']}
    )
  path = write_jsonl(tmp_path / 'perfect.jsonl', perfect)
  said = done('compare', path, run)
  assert (
    'chrf         a 100.0000' in said
    and 'ter          a 0.0000' in said
    and said.count('p 0.001') >= 1
  )
  assert 'there is no config to set seed in' in refused('compare', path, run, '--config.seed=1')


def test_what_cannot_be_compared_is_refused(run, copy, tmp_path):
  rows = read_jsonl(run / 'predictions' / f'test-{STEPS}.jsonl')
  other = write_jsonl(tmp_path / 'other.jsonl', [row | {'id': f'v{row["id"]}'} for row in rows])
  assert f'hold different examples, {rows[0]["id"]!r} for one' in refused('compare', run, other)
  fewer = write_jsonl(tmp_path / 'fewer.jsonl', rows[1:])
  for pair in ((run, fewer), (fewer, run)):
    assert f'hold different examples, {rows[0]["id"]!r} for one' in refused('compare', *pair)
  wrong = write_jsonl(tmp_path / 'wrong.jsonl', [*rows[1:], rows[0] | {'references': ['x']}])
  assert f'the references of {rows[0]["id"]!r} differ' in refused('compare', run, wrong)
  for content in ([], rows[:1] * 2, ['{'], [{'id': 'a', 'hypothesis': 'b'}], ['[1]']):
    assert 'bad.jsonl: ' in refused('compare', write_jsonl(tmp_path / 'bad.jsonl', content), run)
  assert 'no such run folder or predictions file' in refused('compare', run, tmp_path / 'nowhere')
  assert "no predictions of 'valid'" in refused('compare', run, run, '--split=valid')
  shutil.copy(copy / 'predictions' / f'test-{STEPS}.jsonl', copy / 'predictions' / 'valid-7.jsonl')
  assert 'holds predictions of test, valid: choose one by --split' in refused('compare', copy, run)
  assert 'p 1.000' in done('compare', copy, run, '--split=test')


def test_the_newest_step_as_configured_is_compared(copy):
  folder = copy / 'predictions'
  for name in (f'test-{STEPS}-greedy', f'test-{STEPS - 1}'):
    shutil.copy(folder / f'test-{STEPS}.jsonl', folder / f'{name}.jsonl')  # later files
  assert done('compare', copy, copy).count(f'test-{STEPS}.jsonl') == 2


# Ablate


def test_an_ablation_leaves_a_table_and_nothing_that_passes_for_the_runs_own(copy, monkeypatch):
  monkeypatch.setitem(ablation.WORDS, 'people', ['hundred'])
  before = (copy / 'predictions' / f'test-{STEPS}.jsonl').read_bytes()
  said = done('ablate', copy)
  conditions = [
    'as it is',
    'text shuffled',
    'image shuffled',
    'without image',
    'people masked',
    'people masked, image shuffled',
  ]
  table = json.loads((copy / 'ablation' / 'test.json').read_text())
  assert (table['split'], table['step']) == ('test', STEPS)
  assert (
    sorted(row['condition'] for row in table['rows']) == sorted(conditions)
    and table['rows'][0]['condition'] == 'as it is'
  )
  assert all(f'{condition} ' in said for condition in conditions)
  own = json.loads((copy / 'scores' / f'test-{STEPS}.json').read_text())['scores']
  for row in table['rows']:
    assert (
      row['n'] == 32
      and {'value', 'low', 'high', 'difference', 'difference_interval', 'p'}
      == row['chrf'].keys()
      == row['bleu'].keys()
    )
    if row['condition'] == 'as it is':
      assert row['changed'] == 0 and row['chrf']['value'] == pytest.approx(own['chrf']['value'])
  names = {path.stem for path in (copy / 'predictions').iterdir()}
  assert {
    f'test-{STEPS}-text_shuffled',
    f'test-{STEPS}-people_masked-image_shuffled',
  } <= names and len(names) == 6
  assert [name for name in names if runs.PREDICTIONS.fullmatch(name)] == [f'test-{STEPS}']
  assert (copy / 'predictions' / f'test-{STEPS}.jsonl').read_bytes() == before
  assert 'p 1.000' in done('compare', copy, copy)
  asked = []
  page = write_report(copy, asked.append).read_text()
  assert len(set(asked)) == len(asked) == 32 and f'"test-{STEPS}-' not in page


def test_masks_that_make_texts_too_long_leave_the_same_examples_everywhere(copy, monkeypatch):
  monkeypatch.setitem(ablation.WORDS, 'people', ['hundred'])
  monkeypatch.setattr(ablation, 'MASK', MASK * 40)
  said = done('ablate', copy)
  rows = json.loads((copy / 'ablation' / 'test.json').read_text())['rows']
  assert 'are left out' in said and len({row['n'] for row in rows}) == 1 and 0 < rows[0]['n'] < 32


# Translate


def translated(monkeypatch, folder, text, *words):
  if isinstance(text, bytes):
    data = text
  else:
    data = text.encode()
  monkeypatch.setattr(
    'sys.stdin', types.SimpleNamespace(buffer=io.BytesIO(data), isatty=lambda: False)
  )
  return lambda ask: ask('translate', folder, *words)


def numerals(count):
  result = []
  for word in ('twenty', 'thirty', 'forty', 'fifty', 'sixty')[:count]:
    result.append(f'{word}-{MASK} thousand')
  return result


def test_lines_are_translated_in_order_and_empty_ones_stay_empty(text_run, monkeypatch):
  """More lines than a batch holds, whatever stands around one."""
  lines = [
    *numerals(5),
    '',
    '  ',
    *(f'{MASK} hundred and {word}' for word in ('one', 'two', 'three') * 5),
    '',
  ]
  said = translated(monkeypatch, text_run, '\n'.join(lines) + '\n')(done).split('\n')
  assert len(said) == len(lines) + 1 and [bool(a.strip()) for a in lines] == [
    bool(b) for b in said[:-1]
  ]
  answers = dict(zip(lines, said))
  assert len(set(answers.values())) > 2
  for line, answer in answers.items():
    assert all(b == answer for a, b in zip(lines, said) if a == line)
  alone = translated(monkeypatch, text_run, lines[4].encode() + b'\r\n')(done)
  assert alone == f'{answers[lines[4]]}\n'
  assert translated(monkeypatch, text_run, '')(done) == ''


def test_n_best_and_scores(text_run, monkeypatch):
  best = translated(monkeypatch, text_run, '\n'.join(numerals(2)))(done).splitlines()
  said = translated(monkeypatch, text_run, '\n\n'.join(numerals(2)), '--n_best=3', '--scores')(
    done
  ).splitlines()
  scores, texts = zip(*(line.split('\t') for line in said))
  assert [texts[0], texts[6]] == best and texts[3:6] == ('', '', '') and len(said) == 9
  values = [float(score) for score in scores]
  assert (
    values[3:6] == [0, 0, 0] and values[:3] == sorted(values[:3], reverse=True) and values[0] < 0
  )
  assert 'n_best=9 is more' in translated(monkeypatch, text_run, 'one', '--n_best=9')(refused)
  assert 'n_best=0 must be at least 1' in translated(monkeypatch, text_run, 'one', '--n_best=0')(
    refused
  )


def test_lines_that_cannot_be_translated_are_named(text_run, monkeypatch):
  bad = b'twenty\n\nthir\xffty\n'
  assert 'standard input, line 3: byte 5 is no UTF-8' in translated(monkeypatch, text_run, bad)(
    refused
  )
  long = 'one\n\n' + 'million ' * 40
  assert (
    "'standard input, line 3' has" in (said := translated(monkeypatch, text_run, long)(refused))
    and 'reads 40 at most' in said
  )


def test_a_picture_goes_with_every_line(run, text_run, place, tmp_path, monkeypatch):
  source = Experiment.of_run(run, {}).data.source('test')
  pictures = [tmp_path / f'{i}.png' for i in range(2)]
  for i, path in enumerate(pictures):
    path.write_bytes(source[i]['image'])
  text = '\n'.join([*numerals(4), ''])

  def ask(*words):
    return translated(monkeypatch, run, text, '--scores', *words)

  first, second = (ask(f'--image={path}')(done) for path in pictures)
  assert first != second and len(first.splitlines()) == 4
  (tmp_path / 'empty.png').write_bytes(b'')
  (tmp_path / 'broken.png').write_bytes(pictures[0].read_bytes()[:30])
  for path, says in (
    ('nowhere.png', 'No such file'),
    ('', 'Is a directory'),
    ('empty.png', 'zero bytes'),
    ('broken.png', "can't be decoded"),
  ):
    assert says in ask(f'--image={tmp_path / path}')(refused)
  assert 'name it by --image' in ask()(refused)
  assert 'this model reads text' in translated(
    monkeypatch, text_run, text, f'--image={pictures[0]}'
  )(refused)


def test_on_a_terminal_a_line_that_is_too_long_ends_nothing(text_run, monkeypatch, capsys):
  said = iter([*numerals(1), 'million ' * 40, *numerals(1)])

  def answer(prompt):
    try:
      return next(said)
    except StopIteration:
      raise EOFError from None

  monkeypatch.setattr('sys.stdin', types.SimpleNamespace(isatty=lambda: True))
  monkeypatch.setattr('builtins.input', answer)
  lines = done('translate', text_run).splitlines()
  assert len(lines) == 4 and lines[1] == lines[2] != ''


def test_a_captioning_run_reads_no_text(place, monkeypatch):
  config = ROOT / 'configs/captioning/unicode_pictures.py'
  done(
    'train',
    f'{config}:smoke',
    '--workdir',
    place / 'captions',
    f'--config.data.dir={place / "data"}',
    '--config.train.duration=1 steps',
    '--config.parallel.strategy=jit',
  )
  said = translated(monkeypatch, place / 'captions', 'one')(refused)
  assert 'reads image and no text: use `./launch.sh predict`' in said


# What stands in the config


def test_a_wrong_number_of_reference_words_fails_the_evaluation(copy):
  path = copy / 'config.json'
  config = json.loads(path.read_text())
  config['evaluate']['reference_words'] = {'test': 12103}
  path.write_text(json.dumps(config))
  before = {p.name for p in (copy / 'scores').iterdir()}
  for file in (copy / 'scores').iterdir():
    file.unlink()
  assert (
    'test: the references have 32 words' in (said := refused('evaluate', copy))
    and 'not the 12103' in said
  )
  assert before and not [*(copy / 'scores').iterdir()]
