"""A user's own parallel texts, and data sets of the TFDS catalogue, by a config alone."""

import io
import json
import re
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds
from conftest import ROOT
from helpers.parallel_files import BAD_PARALLEL, write_parallel
from PIL import Image
from program import done, read_jsonl, refused

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


def train_parallel(folder, train='my', valid='good', source='en', target='de'):
  """Writes the texts `good` in both layouts; returns the words of a training."""
  for language, text in LINES.items():
    (folder / f'good.{language}').write_text(text)
  sentences = [text.splitlines() for text in LINES.values()]
  rows = [('en', 'de'), *zip(*sentences)]
  (folder / 'good.tsv').write_text(''.join('\t'.join(row) + '\n' for row in rows))
  splits = f'train={folder / train},valid={folder / valid},test={folder / "good"}'
  spec = f'configs/translation/parallel.py:{splits},source={source},target={target}'
  return ['train', spec, '--workdir', folder / 'run', *SMALL]


@pytest.mark.parametrize('split', ['good', 'good.tsv'])
def test_parallel_texts_are_trained_on_and_translated(tmp_path, split):
  output = done(*train_parallel(tmp_path, split))
  assert f'{split}: 12 examples' in output
  assert '2 steps in all' in output
  options = ['--config.evaluate.shuffled=False', '--config.evaluate.bootstrap_samples=5']
  output = done('evaluate', tmp_path / 'run', '--greedy', *options)
  assert all(name in output for name in ('bleu_words', 'bleu', 'chrf', 'ter'))
  (path,) = (tmp_path / 'run' / 'predictions').iterdir()
  predictions = read_jsonl(path)
  references = [prediction['references'] for prediction in predictions]
  inputs = [prediction['input'] for prediction in predictions]
  assert references == [[line] for line in LINES['de'].splitlines()]
  assert inputs == [{'text': line} for line in LINES['en'].splitlines()]


def test_the_vocabulary_of_another_run_is_refused(tmp_path):
  argv = train_parallel(tmp_path, 'good')
  done(*argv)
  path = tmp_path / 'run' / 'tokenizer.json'
  original = path.read_text()
  tokenizer = json.loads(original)
  pieces = tokenizer['tokenizer']['model']['vocab']
  pieces[-1], pieces[-2] = pieces[-2], pieces[-1]  # as many words, in another order
  path.write_text(json.dumps(tokenizer))
  message = f'{path} is not the vocabulary that checkpoint 2 was trained with'
  assert message in refused('evaluate', tmp_path / 'run')
  assert message in refused(*argv)
  path.write_text(original)
  assert 'The run is complete.' in done(*argv)


@pytest.mark.parametrize('split, file, content, pattern', BAD_PARALLEL)
@pytest.mark.parametrize('part', ['train', 'valid'])
def test_bad_parallel_texts_are_refused_before_anything_is_written(
  tmp_path, part, split, file, content, pattern
):
  write_parallel(tmp_path, {file: content})
  splits = {'train': 'good', 'valid': 'good'} | {part: split}
  message = refused(*train_parallel(tmp_path, **splits))
  assert re.search(pattern, message), message
  assert not (tmp_path / 'run').exists()


def test_an_unknown_language_needs_a_config_without_moses_rules(tmp_path):
  argv = train_parallel(tmp_path, 'good', target='dee')
  (tmp_path / 'good.de').rename(tmp_path / 'good.dee')
  assert "language code: no 'dee'. Nearest: 'de'" in refused(*argv)
  argv[1] += ',moses=False'
  assert '2 steps in all' in done(*argv)


def test_lines_over_the_limit_are_counted_and_left_out(tmp_path):
  write_parallel(tmp_path, {'my.en': b'a dog\n' + b'dog ' * 40 + b'\n'})
  output = done(*train_parallel(tmp_path, 'my'))
  assert 'my: 1 of 2 examples are longer than data.max_length=24 tokens' in output
  assert 'and are left out' in output


class CocoLike(tfds.core.GeneratorBasedBuilder):
  """Pictures with several captions in a Sequence of dicts, as in sets of the catalogue."""

  VERSION = tfds.core.Version('1.1.0')

  def _info(self):
    features = {
      'image': tfds.features.Image(shape=(None, None, 3)),
      'image/filename': tfds.features.Text(),
      'captions': tfds.features.Sequence({'text': tfds.features.Text(), 'id': np.int64}),
    }
    return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

  def _split_generators(self, dl_manager):
    return {
      'train': self._generate_examples(0, 16),
      'val': self._generate_examples(16, 24),
      'test': self._generate_examples(24, 28),
    }

  def _generate_examples(self, start, stop):
    for i in range(start, stop):
      colour = 'dark' if i < 14 else 'bright'
      captions = [
        {'text': 'a red square', 'id': i},
        {'text': f'A square, {colour}', 'id': i},
      ]
      yield i, {'image': square(i), 'image/filename': f'{i}.png', 'captions': captions}


def square(i):
  with io.BytesIO() as file:
    Image.new('RGB', (20 + i, 20 + i), (i * 9, 40, 80)).save(file, 'PNG')
    return file.getvalue()


def test_a_set_of_the_catalogue_by_a_config_alone(tmp_path):
  tfds.disable_progress_bar()
  data = tmp_path / 'data'
  CocoLike(data_dir=str(data), file_format='array_record').download_and_prepare()
  folder = tmp_path / 'run'
  ops = '("decode","resize(32)","normalize")'
  output = done(
    'train',
    f'{ROOT}/configs/captioning/catalogue.py:name=coco_like,id=image/filename',
    '--workdir',
    folder,
    f'--config.data.dir={data}',
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
  assert 'train: 32 examples' in output  # two captions a picture
  options = ['--config.evaluate.metrics=bleu_1', '--config.evaluate.bootstrap_samples=10']
  done('evaluate', folder, '--greedy', *options)
  predictions = read_jsonl(folder / 'predictions' / 'test-3-greedy.jsonl')
  ids = {prediction['id'] for prediction in predictions}
  assert ids == {f'{i}.png' for i in range(24, 28)}
  for prediction in predictions:
    assert prediction['references'] == ['a red square', 'A square, bright']
  tokens = (folder / 'tokenizer.json').read_text()
  assert '"bright"' in tokens
  assert '"A"' not in tokens
  shutil.move(data / 'coco_like', data / 'moved')
  message = refused('evaluate', folder)
  assert "No data set 'coco_like'" in message
  assert 'moved' in message
  assert 'array_record' in message
