"""Commands on a trained run: compare, ablate, translate, and decoding with inputs changed."""

import io
import json
import shutil
import types

import numpy as np
import pytest
from conftest import ROOT
from program import done, read_jsonl, refused, write_jsonl

from mmlm.config import load_config
from mmlm.data.text import MASK
from mmlm.evaluation import ablation
from mmlm.experiment.experiment import Experiment
from mmlm.experiment.prediction import Condition, decode, params_of
from mmlm.reports.run_page import write_report
from mmlm.utils import run_dir

CONFIG = ROOT / 'configs/translation/numerals.py'
CAPTIONS = ROOT / 'configs/captioning/unicode_pictures.py'
STEPS = 8
PREDICTIONS = f'test-{STEPS}.jsonl'
SETTINGS = (
  f'--config.train.duration={STEPS} steps',
  '--config.parallel.strategy=jit',
  '--config.evaluate.metrics=("bleu","chrf")',
)


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  return tmp_path_factory.mktemp('place')


def train(place, name, config, *words):
  done(
    'train',
    config,
    '--workdir',
    place / name,
    f'--config.data.dir={place / "data"}',
    *SETTINGS,
    *words,
  )
  return place / name


@pytest.fixture(scope='module')
def run(place):
  """A translation of text and picture, trained for a few steps and evaluated."""
  folder = train(place, 'run', f'{CONFIG}:smoke')
  done('evaluate', folder)
  return folder


@pytest.fixture(scope='module')
def text_run(place):
  return train(place, 'text', f'{CONFIG}:smoke,modalities=text')


@pytest.fixture
def copy(run, tmp_path):
  shutil.copytree(run, tmp_path / 'copy')
  return tmp_path / 'copy'


@pytest.fixture(scope='module')
def parts(run):
  """What `decode` needs: experiment, evaluator, parameters."""
  experiment = Experiment.of_run(run, {})
  loader = experiment.data.loader('test', experiment.data.table('test', False), 16)
  params, _ = params_of(experiment, loader)
  return experiment, experiment.evaluator(), params


@pytest.fixture(scope='module')
def decoded(parts):
  """{condition: predictions} of the test split."""
  conditions = (
    Condition(),
    Condition(shuffled='text'),
    Condition(shuffled='image'),
    Condition(shuffled='inputs'),
    Condition(without='image'),
  )
  predictions = {}
  for condition in conditions:
    predictions[str(condition)] = decode(*parts, 'test', condition=condition)
  return predictions


def scores_of(predictions):
  return np.array([prediction['score'] for prediction in predictions])


# Conditions


def test_a_condition_is_named_by_what_it_changes():
  assert str(Condition()) == 'as it is'
  assert str(Condition('image', 'text', 'nouns')) == 'nouns masked, image shuffled, without text'


def test_without_a_change_the_predictions_are_those_of_the_evaluation(run, decoded):
  assert decoded['as it is'] == read_jsonl(run / 'predictions' / PREDICTIONS)


@pytest.mark.parametrize(
  'condition, moved',
  [
    ('text shuffled', {'text'}),
    ('image shuffled', {'image'}),
    ('inputs shuffled', {'text', 'image'}),
  ],
)
def test_a_shuffled_modality_is_that_of_another_example(decoded, condition, moved):
  unchanged = decoded['as it is']
  shuffled = decoded[condition]
  for prediction, original in zip(shuffled, unchanged, strict=True):
    assert prediction['id'] == original['id']
    assert prediction['references'] == original['references']
    for modality in ('text', 'image'):
      is_moved = prediction['input'][modality] != original['input'][modality]
      assert is_moved == (modality in moved)
  for modality in ('text', 'image'):  # each input is read once
    inputs = [prediction['input'][modality] for prediction in shuffled]
    assert sorted(inputs) == sorted(prediction['input'][modality] for prediction in unchanged)
  for other in decoded.keys() - {condition}:  # the model reads what the file says
    difference = np.abs(scores_of(decoded[other]) - scores_of(shuffled))
    assert np.mean(difference > 1e-4) > 0.9


def test_shuffled_inputs_come_from_one_other_example_together(decoded):
  """Then each prediction is that of the other example, up to rounding."""
  unchanged = {prediction['id']: prediction for prediction in decoded['as it is']}
  for prediction in decoded['inputs shuffled']:
    other = unchanged[prediction['input']['image']]
    assert prediction['input'] == other['input']
    assert prediction['hypothesis'] == other['hypothesis']
    assert prediction['score'] == pytest.approx(other['score'], rel=1e-4)


def test_a_modality_that_is_left_out_has_no_influence(parts, decoded):
  without = decoded['without image']
  assert all(prediction['input'].keys() == {'text'} for prediction in without)
  assert np.mean(scores_of(decoded['as it is']) != scores_of(without)) > 0.9
  condition = Condition(shuffled='image', without='image')
  shuffled = decode(*parts, 'test', condition=condition)
  assert scores_of(shuffled) == pytest.approx(scores_of(without))


def test_masked_words_are_what_the_model_reads(parts, decoded, monkeypatch):
  monkeypatch.setitem(ablation.WORDS, 'colours', ['thousand'])  # a word of the numerals
  masked = decode(*parts, 'test', condition=Condition(masked='colours'))
  for prediction, original in zip(masked, decoded['as it is'], strict=True):
    text = original['input']['text']
    expected = {'text': text.replace('thousand', MASK), 'image': prediction['id']}
    assert prediction['input'] == expected
    assert (prediction['score'] != original['score']) == ('thousand' in text)


# Compare


def test_a_run_does_not_differ_from_itself(run):
  output = done('compare', run, run)
  path = run / 'predictions' / PREDICTIONS
  assert output.startswith(f'32 examples\n  a  {path}\n  b  {path}\n')
  scores = json.loads((run / 'scores' / f'test-{STEPS}.json').read_text())['scores']
  assert len(output.splitlines()) == 3 + len(scores)
  assert output.count('a - b +0.0000 [+0.0000, +0.0000]  p 1.000') == len(scores) == 2
  for name, score in scores.items():
    assert f'{name:<12} a {score["value"]:.4f}  b {score["value"]:.4f}' in output


def test_files_are_compared_by_id_in_any_order(run, tmp_path):
  perfect = []
  for prediction in reversed(read_jsonl(run / 'predictions' / PREDICTIONS)):
    references = prediction['references']
    perfect.append({'id': prediction['id'], 'hypothesis': references[0], 'references': references})
  path = write_jsonl(tmp_path / 'perfect.jsonl', perfect)
  output = done('compare', path, run)
  assert 'chrf         a 100.0000' in output
  assert 'ter          a 0.0000' in output
  assert 'p 0.001' in output
  error = refused('compare', path, run, '--config.seed=1')
  assert 'there is no config to set seed in' in error


def test_different_examples_or_references_cannot_be_compared(run, tmp_path):
  predictions = read_jsonl(run / 'predictions' / PREDICTIONS)
  first, *rest = predictions
  renamed = [prediction | {'id': f'v{prediction["id"]}'} for prediction in predictions]
  other = write_jsonl(tmp_path / 'other.jsonl', renamed)
  message = f'hold different examples, {first["id"]!r} for one'
  assert message in refused('compare', run, other)
  fewer = write_jsonl(tmp_path / 'fewer.jsonl', rest)
  assert message in refused('compare', run, fewer)
  assert message in refused('compare', fewer, run)
  wrong = write_jsonl(tmp_path / 'wrong.jsonl', [*rest, first | {'references': ['x']}])
  assert f'the references of {first["id"]!r} differ' in refused('compare', run, wrong)
  for content in ([], [first, first], ['{'], [{'id': 'a', 'hypothesis': 'b'}], ['[1]']):
    bad = write_jsonl(tmp_path / 'bad.jsonl', content)
    assert 'bad.jsonl: ' in refused('compare', bad, run)


def test_a_run_with_predictions_of_several_splits_needs_a_split(run, copy, tmp_path):
  nowhere = tmp_path / 'nowhere'
  assert 'no such run folder or predictions file' in refused('compare', run, nowhere)
  assert "no predictions of 'valid'" in refused('compare', run, run, '--split=valid')
  folder = copy / 'predictions'
  shutil.copy(folder / PREDICTIONS, folder / 'valid-7.jsonl')
  message = 'holds predictions of test, valid: choose one by --split'
  assert message in refused('compare', copy, run)
  assert 'p 1.000' in done('compare', copy, run, '--split=test')


def test_the_newest_step_as_configured_is_compared(copy):
  folder = copy / 'predictions'
  for name in (f'test-{STEPS}-greedy', f'test-{STEPS - 1}'):
    shutil.copy(folder / PREDICTIONS, folder / f'{name}.jsonl')  # later files
  assert done('compare', copy, copy).count(PREDICTIONS) == 2


# Ablate


def test_an_ablation_writes_a_table_and_predictions_of_each_condition(copy, monkeypatch):
  monkeypatch.setitem(ablation.WORDS, 'people', ['hundred'])
  before = (copy / 'predictions' / PREDICTIONS).read_bytes()
  output = done('ablate', copy)
  study = json.loads((copy / 'ablation' / 'test.json').read_text())
  assert (study['split'], study['step']) == ('test', STEPS)
  conditions = [line['condition'] for line in study['rows']]
  assert conditions[0] == 'as it is'
  assert set(conditions[1:]) == {
    'text shuffled',
    'image shuffled',
    'without image',
    'people masked',
    'people masked, image shuffled',
  }
  assert (copy / 'predictions' / PREDICTIONS).read_bytes() == before
  expected = {'value', 'low', 'high', 'difference', 'difference_interval', 'p'}
  for line in study['rows']:
    assert f'{line["condition"]} ' in output
    assert line['n'] == 32
    assert line['chrf'].keys() == line['bleu'].keys() == expected
  unchanged = study['rows'][0]
  scores = json.loads((copy / 'scores' / f'test-{STEPS}.json').read_text())['scores']
  assert unchanged['changed'] == 0
  assert unchanged['chrf']['value'] == pytest.approx(scores['chrf']['value'])
  names = {path.stem for path in (copy / 'predictions').iterdir()}
  assert len(names) == 6
  assert f'test-{STEPS}-people_masked-image_shuffled' in names
  assert_only_the_evaluation_counts(copy, names)


def assert_only_the_evaluation_counts(run, names):
  """Checks that comparisons and reports do not take an ablation for the evaluation of a run."""
  assert [name for name in names if run_dir.PREDICTIONS.fullmatch(name)] == [f'test-{STEPS}']
  assert 'p 1.000' in done('compare', run, run)
  shown = []
  page = write_report(run, shown.append).read_text()
  assert len(set(shown)) == len(shown) == 32
  assert f'"test-{STEPS}-' not in page


def test_masks_that_make_texts_too_long_leave_the_same_examples_everywhere(copy, monkeypatch):
  monkeypatch.setitem(ablation.WORDS, 'people', ['hundred'])
  monkeypatch.setattr(ablation, 'MASK', MASK * 40)
  assert 'are left out' in done('ablate', copy)
  table = json.loads((copy / 'ablation' / 'test.json').read_text())['rows']
  (count,) = {line['n'] for line in table}
  assert 0 < count < 32


# Translate


@pytest.fixture
def standard_input(monkeypatch):
  """(text or bytes) -> None: makes it the standard input, which is no terminal."""

  def write(text):
    data = text if isinstance(text, bytes) else text.encode()
    file = types.SimpleNamespace(buffer=io.BytesIO(data), isatty=lambda: False)
    monkeypatch.setattr('sys.stdin', file)

  return write


def numerals(count):
  words = ('twenty', 'thirty', 'forty', 'fifty', 'sixty')[:count]
  return [f'{word}-{MASK} thousand' for word in words]


def test_lines_are_translated_in_order_and_empty_ones_stay_empty(text_run, standard_input):
  """More lines than a batch holds; a line has one translation, wherever it stands."""
  hundreds = [f'{MASK} hundred and {word}' for word in ('one', 'two', 'three')]
  lines = [*numerals(5), '', '  ', *hundreds * 5, '']
  standard_input('\n'.join(lines) + '\n')
  translations = done('translate', text_run).split('\n')[:-1]
  assert len(translations) == len(lines)
  by_line = dict(zip(lines, translations))
  assert len(set(by_line.values())) > 2
  for line, translation in zip(lines, translations):
    assert bool(translation) == bool(line.strip())
    assert translation == by_line[line]
  standard_input(lines[4].encode() + b'\r\n')
  assert done('translate', text_run) == f'{by_line[lines[4]]}\n'
  standard_input('')
  assert done('translate', text_run) == ''


def test_n_best_translations_come_with_their_scores(text_run, standard_input):
  standard_input('\n'.join(numerals(2)))
  best = done('translate', text_run).splitlines()
  standard_input('\n\n'.join(numerals(2)))
  output = done('translate', text_run, '--n_best=3', '--scores').splitlines()
  assert len(output) == 9
  scores, texts = zip(*(line.split('\t') for line in output))
  assert [texts[0], texts[6]] == best
  assert texts[3:6] == ('', '', '')
  values = [float(score) for score in scores]
  assert values[3:6] == [0, 0, 0]
  assert values[:3] == sorted(values[:3], reverse=True)
  assert values[0] < 0
  for number, message in ((9, 'n_best=9 is more'), (0, 'n_best=0 must be at least 1')):
    standard_input('one')
    assert message in refused('translate', text_run, f'--n_best={number}')


def test_lines_that_cannot_be_translated_are_named(text_run, standard_input):
  standard_input(b'twenty\n\nthir\xffty\n')
  error = refused('translate', text_run)
  assert 'standard input, line 3: byte 5 is no UTF-8' in error
  standard_input('one\n\n' + 'million ' * 40)
  error = refused('translate', text_run)
  assert "'standard input, line 3' has" in error
  assert 'reads 40 at most' in error


def test_a_picture_goes_with_every_line(run, text_run, tmp_path, standard_input):
  source = Experiment.of_run(run, {}).data.source('test')
  pictures = [tmp_path / '0.png', tmp_path / '1.png']
  for i, path in enumerate(pictures):
    path.write_bytes(source[i]['image'])
  text = '\n'.join([*numerals(4), ''])
  outputs = []
  for path in pictures:
    standard_input(text)
    outputs.append(done('translate', run, '--scores', f'--image={path}'))
  assert outputs[0] != outputs[1]
  assert len(outputs[0].splitlines()) == 4
  standard_input(text)
  error = refused('translate', text_run, f'--image={pictures[0]}')
  assert 'this model reads text' in error


def test_a_picture_that_cannot_be_read_is_named(run, tmp_path, standard_input):
  source = Experiment.of_run(run, {}).data.source('test')
  (tmp_path / 'empty.png').write_bytes(b'')
  (tmp_path / 'broken.png').write_bytes(source[0]['image'][:30])
  for name, message in (
    ('nowhere.png', 'No such file'),
    ('', 'Is a directory'),
    ('empty.png', 'zero bytes'),
    ('broken.png', "can't be decoded"),
  ):
    standard_input('one')
    assert message in refused('translate', run, f'--image={tmp_path / name}')
  standard_input('one')
  assert 'name it by --image' in refused('translate', run)


def test_on_a_terminal_a_line_that_is_too_long_does_not_end_the_command(text_run, monkeypatch):
  typed = iter([*numerals(1), 'million ' * 40, *numerals(1)])

  def read_line(prompt):
    try:
      return next(typed)
    except StopIteration:
      raise EOFError from None

  monkeypatch.setattr('sys.stdin', types.SimpleNamespace(isatty=lambda: True))
  monkeypatch.setattr('builtins.input', read_line)
  lines = done('translate', text_run).splitlines()
  assert len(lines) == 4
  assert lines[1] == lines[2] != ''


def test_a_captioning_run_translates_no_text(tmp_path, standard_input):
  config = load_config(f'{CAPTIONS}:smoke')
  run_dir.write_json(tmp_path / 'config.json', config.to_dict())
  standard_input('one')
  error = refused('translate', tmp_path)
  assert 'reads image and no text: use `./launch.sh predict`' in error


# Evaluate


def test_a_wrong_number_of_reference_words_stops_before_any_score(copy):
  path = copy / 'config.json'
  config = json.loads(path.read_text())
  config['evaluate']['reference_words'] = {'test': 12103}
  path.write_text(json.dumps(config))
  shutil.rmtree(copy / 'scores')
  error = refused('evaluate', copy)
  assert 'test: the references have 32 words' in error
  assert 'not the 12103' in error
  assert not (copy / 'scores').exists()
