"""The smoke form of every config in configs/, from training to the report.

Configs of word vectors are in tests/word_vectors.
"""

import io
import json
import random

import numpy as np
import pytest
from conftest import ROOT
from num2words import num2words
from PIL import Image
from program import done, read_jsonl, refused, write_jsonl

from mmlm import config as configs
from mmlm.cli import quick_start
from mmlm.data.datasets import preparation
from mmlm.data.datasets.numerals import draw
from mmlm.data.datasets.sounds import DIGITS
from mmlm.data.datasets.three_modalities import face
from mmlm.tasks import TASKS

QUICK_START = quick_start.CONFIG
EXCLUDED = ('word_vectors', 'language_model')
PATHS = sorted(ROOT.glob('configs/*/*.py'))
LANGUAGE_MODELS = [path for path in PATHS if path.parent.name == 'language_model']
MODELS = [path for path in PATHS if path.parent.name not in EXCLUDED and path != ROOT / QUICK_START]
HELD_OUT = {
  'unicode_pictures/tiny': 'test_faces[:8]',
  'numerals/tiny': 'test[:8]',
  'three_modalities/tiny': 'test[:8]',
  'keypad_tones/tiny': 'test[:8]',
}


def small_splits(spec):
  """Returns flags for few examples; validation shares the cached grids of the test split.

  A frozen network needs seconds for each hundred pictures.
  """
  held_out = HELD_OUT[configs.load_config(spec).data.name]
  return [
    '--config.data.splits.train=train[:32]',
    f'--config.data.splits.valid={held_out}',
    f'--config.data.splits.test={held_out}',
    '--config.parallel.strategy=jit',
  ]


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  """The generated data sets; grids of pictures are cached beside them."""
  folder = tmp_path_factory.mktemp('data')
  for name in HELD_OUT:
    preparation.prepare(name, None, folder)
  return folder


@pytest.fixture(autouse=True)
def no_java(monkeypatch):
  """METEOR's program needs seconds to start; it is left out where there is none."""
  monkeypatch.setattr('mmlm.evaluation.metrics.meteor.shutil.which', lambda name: None)


def train(spec, folder, data):
  return done('train', spec, '--workdir', folder, f'--config.data.dir={data}', *small_splits(spec))


def read_scores(folder):
  """Returns {name of a score file: its contents}, that of the unchanged inputs first."""
  paths = sorted((folder / 'scores').iterdir(), key=lambda path: len(path.stem))
  return {path.stem: json.loads(path.read_text()) for path in paths}


def metrics_of(config):
  return set(config.evaluate.metrics or TASKS[config.task].metrics)


def check_run(folder, output, place):
  """Checks a run and its scores, predicts, writes its report; returns the predictions."""
  config = configs.from_dict(json.loads((folder / 'config.json').read_text()))
  check_training(folder, output)
  name = check_scores(folder, config)
  predictions = read_jsonl(folder / 'predictions' / f'{name}.jsonl')
  check_predictions(predictions, config)
  mine = own_input(config, place)
  assert done('predict', folder, '--input', mine).startswith('mine.png\t')
  # tests/reports/test_report_attention.py covers attention.
  assert str(folder / 'report.html') in done('report', folder, '--noattention')
  page = (folder / 'report.html').read_text()
  assert predictions[0]['references'][0] in page
  if 'image' in config.model.encoders:
    assert 'data:image/' in page
  return predictions


def check_training(folder, output):
  lines = read_jsonl(folder / 'metrics.jsonl')
  validations = [line['step'] for line in lines if line['kind'] == 'valid']
  assert '32 examples' in output
  assert '6 steps in all' in output
  assert '6/6 100 %' in output
  assert validations == [3, 6]


def check_scores(folder, config):
  scores = read_scores(folder)
  name, *shuffled = scores
  lowest = -1 if config.task == 'regression' else 0  # a correlation may be negative
  assert shuffled == [f'{name}-shuffled'] * config.evaluate.shuffled
  for result in scores.values():
    assert result['n'] == 8
    assert result['scores'].keys() == metrics_of(config) - {'meteor'}
    for score in result['scores'].values():
      assert lowest <= score['low'] <= score['value'] <= score['high']
  return name


def check_predictions(predictions, config):
  ids = {prediction['id'] for prediction in predictions}
  assert len(ids) == 8
  for prediction in predictions:
    (reference,) = prediction['references']
    assert isinstance(prediction['hypothesis'], str)
    assert is_reference(reference, prediction['id'], config)


def is_reference(reference, example_id, config):
  """Whether a text can be the reference of an example of the generated data."""
  modalities = tuple(config.model.encoders)
  if config.task == 'classification':
    return reference in config.model.head.classes
  if config.task == 'regression':
    return -3 <= float(reference) <= 3
  if modalities == ('audio',):
    return reference.isdigit() or set(reference.split()) <= set(DIGITS)
  if 'text' in modalities:
    return reference == num2words(int(example_id), lang='de')
  return reference.startswith('latin ')


def own_input(config, place):
  """Writes a user's own example; returns the file for --input."""
  (place / 'mine.png').write_bytes(own_picture(config))
  if tuple(config.model.encoders) == ('image',):
    return place / 'mine.png'
  width = config.model.encoders.get('audio', {}).get('width', 12)
  np.save(place / 'mine.npy', np.ones((4, width), np.float32))
  example = {'id': 'mine.png', 'image': 'mine.png', 'text': 'twenty-three', 'audio': 'mine.npy'}
  return write_jsonl(place / 'mine.jsonl', [example])


def own_picture(config):
  if config.task in ('classification', 'regression'):
    return face(1, random.Random(0))
  if 'text' in config.model.encoders:
    return draw(23)
  with io.BytesIO() as file:
    Image.new('RGB', (32, 32), (200, 40, 80)).save(file, 'PNG')
    return file.getvalue()


@pytest.mark.parametrize('path', MODELS, ids=lambda path: path.stem)
def test_a_smoke_form_goes_from_training_to_the_report(path, data, tmp_path):
  spec = f'{path}:smoke'
  folder = tmp_path / 'run'
  output = train(spec, folder, data)
  evaluation = done('evaluate', folder)
  assert ('METEOR is left out' in evaluation) == (configs.load_config(spec).task == 'captioning')
  check_run(folder, output, tmp_path)


@pytest.mark.parametrize('path', LANGUAGE_MODELS, ids=lambda path: path.stem)
def test_the_smoke_form_of_a_language_model_goes_to_the_report(path, data, tmp_path):
  spec = f'{path}:smoke'
  folder = tmp_path / 'run'
  assert '6/6 100 %' in train(spec, folder, data)
  done('evaluate', folder)
  (result,) = read_scores(folder).values()
  scores = result['scores']
  assert scores
  assert scores.keys() <= metrics_of(configs.load_config(spec))  # unknown words have no characters
  for score in scores.values():
    assert 0 <= score['low'] <= score['value'] <= score['high'] < np.inf
  assert str(folder / 'report.html') in done('report', folder)
  page = (folder / 'report.html').read_text()
  assert all(name in page for name in scores)


def test_the_quick_start_works_in_any_folder(data, tmp_path, monkeypatch):
  spec = f'{QUICK_START}:smoke'
  monkeypatch.setattr(quick_start, 'CONFIG', spec)
  monkeypatch.chdir(tmp_path)
  output = done(f'--config.data.dir={data}', *small_splits(spec))
  assert output.splitlines()[-1] == 'Report: runs/unicode_pictures/report.html'
  predictions = check_run(tmp_path / 'runs' / 'unicode_pictures', output, tmp_path)
  for prediction in predictions:
    assert f'  {prediction["references"][0]:<48} {prediction["hypothesis"]}\n' in output
  assert 'inputs shuffled' in output
  assert 'exact_match' in output


@pytest.mark.parametrize(
  'setting, message',
  [
    ('data.splits.train=trian', "no split 'trian'"),
    ('data.splits.valid=train[:0]', "split 'train[:0]'"),
    ('data.fields={"image": 1}', 'data.fields'),
    ('data.name=unicode_pictures/huge', 'full, tiny'),
  ],
)
def test_an_unknown_split_or_data_set_is_refused(data, tmp_path, setting, message):
  spec = f'{ROOT}/configs/captioning/unicode_pictures.py:smoke'
  folder = tmp_path / 'run'
  options = [f'--config.data.dir={data}', '--config.parallel.strategy=jit', f'--config.{setting}']
  assert message in refused('train', spec, '--workdir', folder, *options)
  assert not folder.exists()


def test_random_transforms_cannot_act_on_cached_grids(data, tmp_path):
  spec = f'{ROOT}/configs/captioning/flickr8k.py:smoke'
  options = [
    f'--config.data.dir={data}',
    '--config.parallel.strategy=jit',
    '--config.data.train_ops=("decode","randaugment","resize(224)","normalize")',
  ]
  message = refused('train', spec, '--workdir', tmp_path / 'run', *options)
  assert 'cannot be used with cached grids' in message
  assert 'model.encoders.image.cache' in message
