import io
import pickle
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from helpers.parallel_files import BAD_PARALLEL, FIELDS, GOOD, write_parallel
from PIL import Image

from mmlm.data.datasets import preparation
from mmlm.data.datasets.unicode_pictures import UnicodePictures
from mmlm.data.sources.parallel_text import ParallelTexts
from mmlm.data.sources.tfds_source import TfdsSource
from mmlm.utils.errors import UserError


def png(value):
  file = io.BytesIO()
  Image.new('RGB', (4, 4), (value, 0, 0)).save(file, 'PNG')
  return file.getvalue()


class Catalogue(tfds.core.GeneratorBasedBuilder):
  """As sets of the catalogue look: captions in a Sequence of dicts, a class label, a nested
  picture.
  """

  VERSION = tfds.core.Version('1.2.0')

  def _info(self):
    F = tfds.features
    return tfds.core.DatasetInfo(
      builder=self,
      features=F.FeaturesDict(
        {
          'image': F.Image(shape=(4, 4, 3)),
          'captions': F.Sequence({'text': F.Text(), 'id': np.int64}),
          'label': F.ClassLabel(names=['cat', 'dog']),
          'score': np.float32,
          'title': F.Text(),
          'deep': {'thumb': F.Image(shape=(4, 4, 3))},
          'tags': F.Sequence(F.Text()),
        }
      ),
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager):
    return {'train': self._generate_examples(6), 'test': self._generate_examples(2)}

  def _generate_examples(self, count):
    for i in range(count):
      captions = [{'text': f'dög {i}', 'id': 1}, {'text': 'b', 'id': 2}]
      yield (
        i,
        {
          'image': png(i),
          'captions': captions,
          'label': i % 2,
          'score': i / 2,
          'title': f'title {i}',
          'deep': {'thumb': png(9)},
          'tags': ['t'] * (i % 2),
        },
      )


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  builder = Catalogue(data_dir=str(tmp_path_factory.mktemp('data')), file_format='array_record')
  builder.download_and_prepare()
  return builder.data_path


def test_fields_of_every_kind(folder):
  fields = {'image': 'image', 'targets': 'captions/text', 'label': 'label', 'text': 'title'}
  source = TfdsSource(folder, 'train', fields)
  assert len(source) == 6
  assert source[1] == {
    'id': 'train/1',
    'image': png(1),
    'targets': ('dög 1', 'b'),
    'label': 'dog',
    'text': 'title 1',
  }
  assert TfdsSource(folder, 'train', {'label': 'score'})[3]['label'] == 1.5
  assert TfdsSource(folder, 'train', {'targets': 'label'})[1]['targets'] == ('dog',)
  assert TfdsSource(folder, 'test', {'id': 'title', 'targets': 'title'})[1] == {
    'id': 'title 1',
    'targets': ('title 1',),
  }
  assert TfdsSource(folder, 'test', {'image': 'deep/thumb'})[0]['image'] == png(9)


def test_slices_pickles_and_the_ends(folder):
  source = TfdsSource(folder, 'train[:50%]', {'targets': 'title'})
  assert len(source) == 3 and source[0]['id'] == 'train[:50%]/0'
  copy = pickle.loads(pickle.dumps(source))
  assert [copy[i] for i in range(3)] == [source[i] for i in range(3)]


@pytest.mark.parametrize(
  'split, fields, says',
  [
    ('trian', {'targets': 'title'}, r'train \(6\), test \(2\)'),
    ('train[', {'targets': 'title'}, 'train'),
    ('train[:0]', {'targets': 'title'}, r'train\[:0\]'),
    ('train', {'targets': 'captions'}, 'captions/text'),
    ('train', {'targets': 'image'}, 'is no text'),
    ('train', {'targets': 'tags'}, 'empty'),
  ],
)
def test_bad_split_or_field_lists_what_there_is(folder, split, fields, says):
  with pytest.raises(UserError, match=says):
    TfdsSource(folder, split, fields)


def test_a_folder_that_is_no_array_record_data_set(folder, tmp_path):
  with pytest.raises(UserError, match='not a prepared data set'):
    TfdsSource(tmp_path, 'train', {})
  info = tmp_path / 'dataset_info.json'
  for name in ('dataset_info.json', 'features.json'):
    (tmp_path / name).write_bytes((folder / name).read_bytes())
  (tmp_path / 'label.labels.txt').write_bytes((folder / 'label.labels.txt').read_bytes())
  info.write_text(info.read_text().replace('array_record', 'tfrecord'))
  with pytest.raises(UserError, match='prepared as tfrecord'):
    TfdsSource(tmp_path, 'train', {'targets': 'title'})


def test_a_catalogue_set_is_found_by_name(folder):
  data_dir = folder.parent.parent
  assert len(preparation.open_source('catalogue', data_dir, 'test', {'targets': 'title'})) == 2
  with pytest.raises(UserError, match='name the fields'):
    preparation.open_source('catalogue', data_dir, 'test')
  with pytest.raises(UserError, match="'catalogue'"):
    preparation.open_source('catalog', data_dir, 'test', {'targets': 'title'})


def test_a_killed_build_leaves_nothing_that_counts(tmp_path, monkeypatch):
  left = tmp_path / 'unicode_pictures' / 'tiny' / 'incomplete.A1B2C3_1.0.0'  # as TFDS names it
  left.mkdir(parents=True)
  (left / 'dataset_info.json').write_text('{}')
  source = preparation.open_source('unicode_pictures/tiny', tmp_path, 'train')
  assert len(source) > 100 and not left.exists()
  monkeypatch.setattr(preparation, '_build', None)  # there already: nothing is built
  assert preparation.prepare('unicode_pictures/tiny', None, tmp_path).is_dir()


def test_a_full_disk_is_an_answer_and_leaves_nothing(tmp_path, monkeypatch):
  def full(self, split, pictures):
    yield from ()
    raise RuntimeError('write() failed: No space left on device; writing x')

  monkeypatch.setattr(UnicodePictures, '_generate_examples', full)
  with pytest.raises(UserError, match='disk is full'):
    preparation.prepare('unicode_pictures/tiny', None, tmp_path)
  assert list(tmp_path.glob('unicode_pictures/tiny/*')) == []


def test_two_processes_build_once(tmp_path):
  code = (
    'import sys; from mmlm.data.datasets.preparation import prepare\n'
    'prepare("unicode_pictures/tiny", None, sys.argv[1])'
  )
  command = [sys.executable, '-c', code, str(tmp_path)]
  both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
  said = ''.join(process.communicate(timeout=200)[1] for process in both)
  assert [process.returncode for process in both] == [0, 0]
  assert said.count('prepared:') == 1


def test_missing_source_says_how_to_get_it(tmp_path, monkeypatch):
  monkeypatch.delenv('MMLM_DATA', raising=False)
  with pytest.raises(UserError, match='./launch.sh prepare flickr8k --source'):
    preparation.open_source('flickr8k', tmp_path, 'train')
  with pytest.raises(UserError, match='no such folder'):
    preparation.prepare('flickr8k', tmp_path / 'nowhere', tmp_path)
  with pytest.raises(UserError, match='full, tiny'):
    preparation.prepare('unicode_pictures/huge', None, tmp_path)


# Parallel texts


@pytest.mark.parametrize('split', ['my', 'my.tsv'])
@pytest.mark.parametrize(
  'change',
  [
    lambda content: content,
    lambda content: content.rstrip(b'\n').replace(b'\n', b'\r\n') + b'\r\n',
    lambda content: b'\xef\xbb\xbf' + content,
  ],
  ids=['as it is', 'CRLF', 'byte order mark'],
)
def test_parallel_texts_are_the_lines(tmp_path, split, change):
  write_parallel(tmp_path, {name: change(content) for name, content in GOOD.items()})
  split = str(tmp_path / split)
  source = pickle.loads(pickle.dumps(ParallelTexts(split, FIELDS)))
  assert [source[i] for i in range(len(source))] == [
    {'id': f'{split}:1', 'text': 'a dog', 'targets': ('ein Hund',)},
    {'id': f'{split}:2', 'text': 'the "cat"', 'targets': ('Döner',)},
  ]
  assert ParallelTexts(split, {'text': 'de', 'targets': 'en'})[1]['text'] == 'Döner'


def test_only_line_feeds_end_a_line(tmp_path):
  """What else Unicode counts as the end of a line may stand in a text."""
  write_parallel(tmp_path, {'my.en': 'a\u2028b\x0bc\u0085d\ne'.encode()})
  assert ParallelTexts(str(tmp_path / 'my'), FIELDS)[0]['text'] == 'a\u2028b\x0bc\u0085d'


@pytest.mark.parametrize('split, file, content, says', BAD_PARALLEL)
def test_what_is_wrong_with_parallel_texts_is_named(tmp_path, split, file, content, says):
  write_parallel(tmp_path, {file: content})
  with pytest.raises(UserError, match=says):
    ParallelTexts(str(tmp_path / split), FIELDS)


@pytest.mark.parametrize(
  'fields', [{}, {'text': 'en'}, {'text': 'en', 'targets': 'de', 'image': 'x'}]
)
def test_parallel_texts_have_two_fields(tmp_path, fields):
  write_parallel(tmp_path)
  with pytest.raises(UserError, match="data.fields=.*{'text': LANGUAGE, 'targets': LANGUAGE}"):
    ParallelTexts(str(tmp_path / 'my'), fields)
