"""Every config of configs/ in its smoke form, from training to the report, and a set of the TFDS catalogue by a config alone."""

import io
import json
import random
import re
import shutil

import flax.linen as nn
import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from conftest import ROOT
from num2words import num2words
from PIL import Image
from program import done, read_jsonl, refused, write_jsonl
from test_sources import BAD_PARALLEL, write_parallel

from mmlm import config as configs
from mmlm.cli import quick_start
from mmlm.data.batching import Batch
from mmlm.data.datasets import preparation
from mmlm.data.datasets.numerals import draw
from mmlm.data.datasets.sounds import DIGITS
from mmlm.data.datasets.three_modalities import face
from mmlm.experiment.experiment import Experiment
from mmlm.models.encoders.vision_encoders import EfficientNetGrid
from mmlm.parallel import Parallel
from mmlm.pretrained import FAMILIES, Family
from mmlm.pretrained.frozen_backbone import FrozenBackbone, pick_variant
from mmlm.tasks import TASKS

QUICK_START = quick_start.CONFIG
FILES = sorted(
  path
  for path in ROOT.glob('configs/*/*.py')
  if path != ROOT / QUICK_START and path.parent.name != 'word_vectors'
)  # see test_vectors.py
TEXTS = [
  path for path in FILES if path.parent.name == 'language_model'
]  # they answer nothing: a text is scored
# A frozen network needs seconds for each hundred pictures: a few are enough, and validation shares those of the test.
FEW = ['--config.data.splits.train=train[:32]', '--config.parallel.strategy=jit']
HELD_OUT = {
  'unicode_pictures/tiny': 'test_faces[:8]',
  'numerals/tiny': 'test[:8]',
  'three_modalities/tiny': 'test[:8]',
  'keypad_tones/tiny': 'test[:8]',
}


def few(spec) -> list[str]:
  held_out = HELD_OUT[configs.load_config(spec).data.name]
  return [*FEW, f'--config.data.splits.valid={held_out}', f'--config.data.splits.test={held_out}']


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  """The generated sets, prepared once, and the cached grids of the configs, which are all the same."""
  folder = tmp_path_factory.mktemp('data')
  for name in HELD_OUT:
    preparation.prepare(name, None, folder)
  return folder


@pytest.fixture(autouse=True)
def no_java(monkeypatch):
  """METEOR's program needs seconds to start; it is left out where there is none."""
  monkeypatch.setattr('mmlm.evaluation.metrics.meteor.shutil.which', lambda name: None)


def png(value, side=32) -> bytes:
  file = io.BytesIO()
  Image.new('RGB', (side, side), (value, 40, 80)).save(file, 'PNG')
  return file.getvalue()


def check(folder, training, place):
  """What stands in the folder of a smoke run that was evaluated; then a prediction and a report from it."""
  config = configs.from_dict(json.loads((folder / 'config.json').read_text()))
  reads = tuple(config.model.encoders)
  assert '32 examples' in training and '6 steps in all' in training and '6/6 100 %' in training
  assert [
    row['step'] for row in read_jsonl(folder / 'metrics.jsonl') if row['kind'] == 'valid'
  ] == [3, 6]
  scores = {p.stem: json.loads(p.read_text()) for p in (folder / 'scores').iterdir()}
  plain, *others = sorted(scores, key=len)
  assert others == [f'{plain}-shuffled'] * config.evaluate.shuffled
  wanted = set(config.evaluate.metrics or TASKS[config.task].metrics) - {'meteor'}
  assert all(s['n'] == 8 and s['scores'].keys() == wanted for s in scores.values())
  lowest = -1 if config.task == 'regression' else 0  # a correlation may be negative
  assert all(
    lowest <= v['low'] <= v['value'] <= v['high']
    for s in scores.values()
    for v in s['scores'].values()
  )
  rows = read_jsonl(folder / 'predictions' / f'{plain}.jsonl')
  assert len({row['id'] for row in rows}) == 8 and all(
    isinstance(row['hypothesis'], str) for row in rows
  )
  labels = config.task in ('classification', 'regression')
  for row in rows:
    (reference,) = row['references']
    if labels:
      assert (
        reference in config.model.head.classes
        if config.task == 'classification'
        else -3 <= float(reference) <= 3
      )
    elif reads == ('audio',):
      assert reference.isdigit() or set(reference.split()) <= set(DIGITS)
    else:
      assert (
        reference == num2words(int(row['id']), lang='de')
        if 'text' in reads
        else reference.startswith('latin ')
      )
  (place / 'mine.png').write_bytes(
    face(1, random.Random(0)) if labels else draw(23) if 'text' in reads else png(200)
  )
  np.save(
    place / 'mine.npy',
    np.ones((4, config.model.encoders.get('audio', {}).get('width', 12)), np.float32),
  )
  given = place / 'mine.png'
  if reads != ('image',):
    given = write_jsonl(
      place / 'mine.jsonl',
      [{'id': 'mine.png', 'image': 'mine.png', 'text': 'twenty-three', 'audio': 'mine.npy'}],
    )
  assert done('predict', folder, '--input', given).startswith('mine.png\t')
  assert str(folder / 'report.html') in done(
    'report', folder, '--noattention'
  )  # test_report_attention.py has it
  page = (folder / 'report.html').read_text()
  assert rows[0]['references'][0] in page and ('image' not in reads or 'data:image/' in page)
  return rows


@pytest.mark.parametrize(
  'path', [path for path in FILES if path not in TEXTS], ids=lambda path: path.stem
)
def test_the_smoke_form_goes_from_training_to_the_report(path, data, tmp_path):
  folder = tmp_path / 'run'
  spec = f'{path}:smoke'
  said = done('train', spec, '--workdir', folder, f'--config.data.dir={data}', *few(spec))
  said_then = done('evaluate', folder)
  assert ('METEOR is left out' in said_then) == (configs.load_config(spec).task == 'captioning')
  check(folder, said, tmp_path)


@pytest.mark.parametrize('path', TEXTS, ids=lambda path: path.stem)
def test_the_smoke_form_of_a_language_model_goes_to_the_report(path, data, tmp_path):
  folder = tmp_path / 'run'
  spec = f'{path}:smoke'
  assert '6/6 100 %' in done(
    'train', spec, '--workdir', folder, f'--config.data.dir={data}', *few(spec)
  )
  done('evaluate', folder)
  (path,) = (folder / 'scores').iterdir()
  scores = json.loads(path.read_text())['scores']
  config = configs.load_config(spec)
  assert scores and scores.keys() <= set(
    config.evaluate.metrics or TASKS[config.task].metrics
  )  # unknown words have no characters
  assert all(0 <= s['low'] <= s['value'] <= s['high'] < np.inf for s in scores.values())
  assert str(folder / 'report.html') in done('report', folder)
  assert all(name in (folder / 'report.html').read_text() for name in scores)


def test_the_quick_start(data, tmp_path, monkeypatch):
  """Everything with one word; also from another folder than the project's."""
  monkeypatch.setattr(quick_start, 'CONFIG', f'{QUICK_START}:smoke')
  monkeypatch.chdir(tmp_path)
  said = done(f'--config.data.dir={data}', *few(QUICK_START + ':smoke'))
  assert said.splitlines()[-1] == 'Report: runs/unicode_pictures/report.html'
  rows = check(tmp_path / 'runs' / 'unicode_pictures', said, tmp_path)
  assert all(f'  {row["references"][0]:<48} {row["hypothesis"]}\n' in said for row in rows)
  assert 'inputs shuffled' in said and 'exact_match' in said


class Blocks(nn.Module):
  """A frozen network of one layer."""

  @nn.compact
  def __call__(self, x):
    return nn.Conv(4, (8, 8), strides=8, padding='VALID', use_bias=False)(x)


def test_grids_on_disk_are_those_of_the_network(data, tmp_path, monkeypatch):
  params = Blocks().init(jax.random.key(0), np.zeros((1, 16, 16, 3)))['params']
  monkeypatch.setattr(EfficientNetGrid, 'backbone', Blocks)
  monkeypatch.setitem(FAMILIES, 'efficientnet_lite0', Family(lambda name: params))
  ops = '("decode","resize(16)","flip","normalize")'
  settings = {
    'data.dir': str(tmp_path),
    'data.train_ops': ops,
    'data.eval_ops': ops.replace('"flip",', ''),
    'parallel.strategy': 'jit',
  }
  smoke = configs.load_config(f'{ROOT}/configs/captioning/manifest.py:smoke')

  def batches(cache, train):
    experiment = Experiment(
      configs.override(smoke, settings | {'model.encoders.image.cache': cache}), tmp_path
    )
    loader = experiment.data.loader(
      'train[:70]', experiment.data.table('train[:70]', True), 8, train
    )
    grids = []
    for n in range(8):
      grids.append(np.asarray(loader(n, Batch(np.arange(8) + 8 * n, 40, 8))['image'], np.float32))
    if cache == 'True':
      return np.concatenate(grids)
    return np.asarray(experiment.data.backbone.grid(np.concatenate(grids)), np.float32)

  wanted = batches('False', False)
  turned = batches('True', True)
  assert wanted.shape == (64, 4, 4) and np.array_equal(batches('True', False), wanted)
  as_it_is = (turned == wanted).all((1, 2))
  assert 16 < as_it_is.sum() < 48
  (path,) = (tmp_path / 'features').iterdir()
  mirrored = np.load(path)[:64, 1].astype(np.float32)
  assert np.array_equal(turned[~as_it_is], mirrored[~as_it_is]) and not np.array_equal(
    mirrored, wanted
  )


def test_an_example_without_a_picture_has_no_grid_on_disk(tmp_path, monkeypatch):
  params = Blocks().init(jax.random.key(0), np.zeros((1, 16, 16, 3)))['params']
  monkeypatch.setattr(EfficientNetGrid, 'backbone', Blocks)
  monkeypatch.setitem(FAMILIES, 'efficientnet_lite0', Family(lambda name: params))
  source = [{'id': 'a', 'image': png(9, 16)}, {'id': 'b'}, {'id': 'c', 'image': b''}]
  cached = FrozenBackbone(EfficientNetGrid, Parallel('jit')).cached(
    source, 'x', ('decode', 'normalize'), True, tmp_path
  )
  pick = pick_variant(train=True)
  assert ['image' in pick(cached[i], np.random.default_rng(0)) for i in range(3)] == [
    True,
    False,
    False,
  ]


# Parallel texts of a person's own

SMALL = [
  '--config.train.duration=2 steps',
  '--config.train.eval_every=2 steps',
  '--config.train.batch_size=4',
  '--config.train.batch_tokens=200',
  '--config.tokenizer.vocab_size=60',
  '--config.model.dim=16',
  '--config.model.encoders.text.layers=1',
  '--config.model.head.layers=1',
  '--config.train.monitor=loss',
  '--config.parallel.strategy=jit',
  '--config.evaluate.batch_size=4',
  '--config.evaluate.average=1',
  '--config.data.max_length=24',
  '--config.data.buckets=(8, 24)',
]
LINES = {
  'en': 'a dog runs .\nthe cat sleeps, too .\ntwo dogs !\na cat and a dog .\n' * 3,
  'de': 'ein Hund rennt .\ndie Katze schläft auch .\nzwei Hunde !\neine Katze und ein Hund .\n' * 3,
}


def parallel(folder, split='my', source='en', target='de', **arguments):
  for language, text in LINES.items():
    (folder / f'good.{language}').write_text(text)
  rows = zip(*(text.splitlines() for text in LINES.values()))
  (folder / 'good.tsv').write_text(''.join('\t'.join(row) + '\n' for row in [('en', 'de'), *rows]))
  splits = {'train': split, 'valid': 'good', 'test': 'good'} | arguments
  paths = ','.join(f'{part}={folder / name}' for part, name in splits.items())
  return [
    'train',
    f'configs/translation/parallel.py:{paths},source={source},target={target}',
    '--workdir',
    folder / 'run',
    *SMALL,
  ]


@pytest.mark.parametrize('split', ['good', 'good.tsv'])
def test_parallel_texts_are_trained_on_and_translated(tmp_path, split):
  said = done(*parallel(tmp_path, split))
  assert f'{split}: 12 examples' in said and '2 steps in all' in said
  said = done(
    'evaluate',
    tmp_path / 'run',
    '--greedy',
    '--config.evaluate.shuffled=False',
    '--config.evaluate.bootstrap_samples=5',
  )
  assert all(name in said for name in ('bleu_words', 'bleu', 'chrf', 'ter'))
  (path,) = (tmp_path / 'run' / 'predictions').iterdir()
  rows = read_jsonl(path)
  assert [row['references'] for row in rows] == [[line] for line in LINES['de'].splitlines()]
  assert [row['input'] for row in rows] == [{'text': line} for line in LINES['en'].splitlines()]


def test_the_vocabulary_of_another_run_is_refused(tmp_path):
  argv = parallel(tmp_path, 'good')
  done(*argv)
  path = tmp_path / 'run' / 'tokenizer.json'
  right = path.read_text()
  saved = json.loads(right)
  pieces = saved['tokenizer']['model']['vocab']
  pieces[-1], pieces[-2] = pieces[-2], pieces[-1]  # as many words, in another order
  path.write_text(json.dumps(saved))
  for command in (['evaluate', tmp_path / 'run'], argv):
    assert f'{path} is not the vocabulary that checkpoint 2 was trained with' in refused(*command)
  path.write_text(right)
  assert 'The run is complete.' in done(*argv)


@pytest.mark.parametrize('split, file, content, says', BAD_PARALLEL)
@pytest.mark.parametrize('part', ['train', 'valid'])
def test_bad_parallel_texts_are_refused_before_anything_is_written(
  tmp_path, part, split, file, content, says
):
  write_parallel(tmp_path, {file: content})
  if part == 'train':
    arguments = {'split': split}
  else:
    arguments = {'split': 'good', 'valid': split}
  said = refused(*parallel(tmp_path, **arguments))
  assert re.search(says, said), said
  assert not (tmp_path / 'run').exists()


def test_an_unknown_language_is_refused(tmp_path):
  argv = parallel(tmp_path, 'good', target='dee')
  (tmp_path / 'good.de').rename(tmp_path / 'good.dee')
  assert "language code: no 'dee'. Nearest: 'de'" in refused(*argv)
  argv[1] += ',moses=False'  # without Moses' rules it is but a name
  assert '2 steps in all' in done(*argv)


def test_lines_over_the_limit_are_counted_and_left_out(tmp_path):
  write_parallel(tmp_path, {'my.en': b'a dog\n' + b'dog ' * 40 + b'\n'})
  assert 'my: 1 of 2 examples are longer than data.max_length=24 tokens and are left out' in done(
    *parallel(tmp_path, 'my')
  )


@pytest.mark.parametrize(
  'settings, says',
  [
    (['data.splits.train=trian'], "no split 'trian'"),
    (['data.splits.valid=train[:0]'], "split 'train[:0]'"),
    (['data.fields={"image": 1}'], 'data.fields'),
    (['data.name=unicode_pictures/huge'], 'full, tiny'),
  ],
)
def test_a_split_that_is_not_there(data, tmp_path, settings, says):
  spec = f'{ROOT}/configs/captioning/unicode_pictures.py:smoke'
  argv = [
    'train',
    spec,
    '--workdir',
    tmp_path / 'run',
    f'--config.data.dir={data}',
    '--config.parallel.strategy=jit',
  ]
  assert says in refused(*argv, *(f'--config.{s}' for s in settings))
  assert not (tmp_path / 'run').exists()


def test_random_ops_cannot_act_on_grids_from_disk(data, tmp_path):
  spec = f'{ROOT}/configs/captioning/flickr8k.py:smoke'
  said = refused(
    'train',
    spec,
    '--workdir',
    tmp_path / 'run',
    f'--config.data.dir={data}',
    '--config.parallel.strategy=jit',
    '--config.data.train_ops=("decode","randaugment","resize(224)","normalize")',
  )
  assert 'cannot be used with cached grids' in said and 'model.encoders.image.cache' in said


class CocoLike(tfds.core.GeneratorBasedBuilder):
  """As sets of the TFDS catalogue look: pictures with several captions in a Sequence of dicts."""

  VERSION = tfds.core.Version('1.1.0')

  def _info(self):
    F = tfds.features
    return tfds.core.DatasetInfo(
      builder=self,
      features=F.FeaturesDict(
        {
          'image': F.Image(shape=(None, None, 3)),
          'image/filename': F.Text(),
          'captions': F.Sequence({'text': F.Text(), 'id': np.int64}),
        }
      ),
    )

  def _split_generators(self, dl_manager):
    return {
      'train': self._generate_examples(0, 16),
      'val': self._generate_examples(16, 24),
      'test': self._generate_examples(24, 28),
    }

  def _generate_examples(self, start, stop):
    for i in range(start, stop):
      captions = []
      for text in ('a red square', f'A square, {"dark" if i < 14 else "bright"}'):
        captions.append({'text': text, 'id': i})
      yield i, {'image': png(i * 9, 20 + i), 'image/filename': f'{i}.png', 'captions': captions}


def test_a_set_of_the_catalogue_by_a_config_alone(tmp_path):
  tfds.disable_progress_bar()
  CocoLike(data_dir=str(tmp_path / 'data'), file_format='array_record').download_and_prepare()
  folder = tmp_path / 'run'
  ops = '("decode","resize(32)","normalize")'
  said = done(
    'train',
    f'{ROOT}/configs/captioning/catalogue.py:name=coco_like,id=image/filename',
    '--workdir',
    folder,
    f'--config.data.dir={tmp_path / "data"}',
    '--config.model.encoders.image.name=vit',
    '--config.model.encoders.image.layers=1',
    '--config.model.head.layers=1',
    '--config.model.dim=16',
    '--config.train.duration=3 steps',
    '--config.train.batch_size=16',
    '--config.tokenizer.min_frequency=1',
    f'--config.data.train_ops={ops}',
    f'--config.data.eval_ops={ops}',
    '--config.data.buckets=(40,)',
    '--config.train.monitor=loss',
    '--config.evaluate.batch_size=8',
    '--config.parallel.strategy=jit',
  )
  assert 'train: 32 examples' in said  # two captions a picture
  done(
    'evaluate',
    folder,
    '--greedy',
    '--config.evaluate.metrics=bleu_1',
    '--config.evaluate.bootstrap_samples=10',
  )
  rows = read_jsonl(folder / 'predictions' / 'test-3-greedy.jsonl')
  assert {row['id'] for row in rows} == {f'{i}.png' for i in range(24, 28)}
  assert all(row['references'] == ['a red square', 'A square, bright'] for row in rows)
  tokens = (folder / 'tokenizer.json').read_text()
  assert '"bright"' in tokens and '"A"' not in tokens
  shutil.move(tmp_path / 'data' / 'coco_like', tmp_path / 'data' / 'moved')
  said = refused('evaluate', folder)
  assert "No data set 'coco_like'" in said and 'moved' in said and 'array_record' in said
