"""Multi30k: its three forms on small folders made by hand, what is refused, and the counts of the
real data.
"""

import io
import re

import numpy as np
import pytest
from PIL import Image

from mmlm.config import load_config
from mmlm.data.batching import TrainPlan
from mmlm.data.datasets.multi30k import Multi30k
from mmlm.data.datasets.preparation import open_source, prepare
from mmlm.data.sources.parallel_text import read_table
from mmlm.data.text import moses_tokenize
from mmlm.data.tokenizers.train_tokenizer import train_tokenizer
from mmlm.utils.errors import UserError

TABLES = {'train': 4, 'val': 2, 'test_2016_flickr': 3, 'test_2017_flickr': 2, 'test_2017_mscoco': 1}
WITH_CZECH = ('train', 'val', 'test_2016_flickr')
COUNTS = {'train': 4, 'valid': 2, 'test_2016': 3, 'test_2017': 2, 'test_coco': 1}
EVERY = {'id': 'id', 'text': 'en', 'targets': 'de', 'french': 'fr', 'czech': 'cs'}


def jpeg(name):
  file = io.BytesIO()
  pixels = np.random.default_rng(list(name.encode())).integers(0, 256, (8, 12, 3), np.uint8)
  Image.fromarray(pixels).save(file, 'JPEG')
  return file.getvalue()


def table(path, *rows):
  path.write_text(''.join('\t'.join(row) + '\n' for row in rows), encoding='utf-8')


def photo(name, i):
  """Every example but the first of a table has a photo in Flickr8k."""
  if i and not name.startswith('test_2017'):
    return f'{name}{i}_8k.jpg'
  return ''


@pytest.fixture
def root(tmp_path):
  """A source with Flickr8k's photos beside it."""
  root = tmp_path / 'original' / 'multi30k'
  (root.parent / 'flickr8k').mkdir(parents=True)
  root.mkdir()
  for name, count in TABLES.items():
    languages = ['en', 'de', 'fr'] + ['cs'] * (name in WITH_CZECH)
    rows = []
    for i in range(count):
      rows.append(
        [f'{name}{i}.jpg', photo(name, i), *(f'{language} "{name}" {i}.' for language in languages)]
      )
    table(root / f'{name}.tsv', ['image', 'flickr8k_image', *languages], *rows)
  photos = [
    photo(name, i) for name, count in TABLES.items() for i in range(count) if photo(name, i)
  ]
  captions = [
    ['split', 'image', 'index', 'caption'],
    *([split, f'{split}.jpg', '0', 'a'] for split in ('train', 'dev', 'test')),
    *(['train', name, '0', 'a'] for name in photos),
  ]
  table(root.parent / 'flickr8k' / 'captions_en.tsv', *captions)
  for name in photos:
    (root.parent / 'flickr8k' / name).write_bytes(jpeg(name))
  for name, stem in (('train', 'train'), ('val', 'val'), ('test_2016_flickr', 'test_2016')):
    rows = [
      [f'{name}1.jpg', photo(name, 1), language, str(i), f'{language} {i}']
      for language in ('en', 'de')
      for i in range(5)
    ]
    table(
      root / f'task2_{stem}_with_image.tsv',
      ['image', 'flickr8k_image', 'lang', 'index', 'description'],
      *rows,
    )
  return root


@pytest.fixture
def data(tmp_path, monkeypatch):
  monkeypatch.delenv('MMLM_DATA', raising=False)
  return tmp_path / 'data'


def examples(source):
  return [source[i] for i in range(len(source))]


def edit(path, pattern, text):
  old = path.read_text()
  new = re.sub(pattern, text, old, count=1, flags=re.M)
  assert new != old
  path.write_text(new)


# The three forms


def test_the_form_text_holds_every_pair(root, data):
  for split, count in COUNTS.items():
    source = open_source('multi30k/text', data, split, EVERY, root)
    name = ['train', 'val', 'test_2016_flickr', 'test_2017_flickr', 'test_2017_mscoco'][
      list(COUNTS).index(split)
    ]
    assert (
      sorted(example['id'] for example in examples(source))
      == [f'{name}{i}.jpg' for i in range(count)]
      and len(source) == count
    )
    for example in examples(source):
      i = example['id'].removeprefix(name)[0]
      assert example['text'] == f'en "{name}" {i}.' and example['targets'] == (f'de "{name}" {i}.',)
      assert example['french'] == f'fr "{name}" {i}.' and example['czech'] == (
        f'cs "{name}" {i}.' if name in WITH_CZECH else ''
      )
      assert 'image' not in example


def test_the_form_photos_joins_the_photos(root, data):
  for split, name, count in (
    ('train', 'train', 3),
    ('valid', 'val', 1),
    ('test_2016', 'test_2016_flickr', 2),
  ):
    source = open_source('multi30k/photos', data, split, EVERY | {'image': 'image'}, root)
    assert sorted(example['id'] for example in examples(source)) == [
      f'{name}{i}.jpg' for i in range(1, count + 1)
    ]
    for example in examples(source):
      i = int(example['id'].removeprefix(name)[0])
      assert example['image'] == jpeg(photo(name, i)) and example['text'] == f'en "{name}" {i}.'
  with pytest.raises(UserError, match="no split 'test_2017'"):
    open_source('multi30k/photos', data, 'test_2017', EVERY, root)


def test_the_form_descriptions_has_five_of_each(root, data):
  for language in ('en', 'de'):
    source = open_source(
      'multi30k/descriptions',
      data,
      'train',
      {'id': 'id', 'image': 'image', 'targets': language},
      root,
    )
    assert examples(source) == [
      {
        'id': 'train1.jpg',
        'image': jpeg('train1_8k.jpg'),
        'targets': tuple(f'{language} {i}' for i in range(5)),
      }
    ]


def test_photos_are_also_found_by_the_environment(root, data, tmp_path, monkeypatch):
  (root.parent / 'flickr8k').rename(tmp_path / 'flickr8k')
  with pytest.raises(
    UserError, match='(?s)no Flickr8k for the photos.*./launch.sh prepare multi30k --source'
  ):
    prepare('multi30k/photos', root, data)
  monkeypatch.setenv('MMLM_DATA', str(tmp_path))
  assert len(open_source('multi30k/photos', data, 'train', source_dir=root)) == 3


# What is refused


def leftovers(data):
  """Files that a failed build left; TFDS keeps the names of the forms in `.config`."""
  result = []
  for path in data.rglob('*'):
    if path.is_file() and path.name != '.multi30k.lock' and path.parent.name != '.config':
      result.append(path.name)
  return result


@pytest.mark.parametrize(
  'form, file, own, other',
  [
    ('photos', 'train', r'train1\.jpg', 'test_2016_flickr1.jpg'),
    (
      'photos',
      'train',
      r'train1_8k\.jpg',
      'test_2016_flickr2_8k.jpg',
    ),  # another name of the same photo
    ('photos', 'val', r'val1\.jpg', 'train3.jpg'),
    ('descriptions', 'task2_train_with_image', r'train1\.jpg', 'test_2016_flickr1.jpg'),
  ],
)
def test_a_photo_of_two_splits_is_refused(root, data, form, file, own, other):
  edit(root / f'{file}.tsv', own, other)
  with pytest.raises(UserError, match=f'the photo {other} is in .* and '):
    prepare(f'multi30k/{form}', root, data)
  assert leftovers(data) == []


def test_a_missing_file_is_answered_with_how_to_get_it(root, data):
  how = (
    r'(?s){}\.tsv: no such file\.\n.*https://github.com/multi30k/dataset.*'
    r'\./launch.sh prepare multi30k --source FOLDER'
  )
  for form, name in (
    ('text', 'test_2017_mscoco'),
    ('photos', 'val'),
    ('descriptions', 'task2_val_with_image'),
  ):
    (root / f'{name}.tsv').unlink()
    with pytest.raises(UserError, match=how.format(name)):
      prepare(f'multi30k/{form}', root, data)
  with pytest.raises(UserError, match=r'(?s)no such folder.*https://github.com/multi30k/dataset'):
    prepare('multi30k', None, data)
  assert leftovers(data) == []


@pytest.mark.parametrize(
  'form, file, pattern, text, says',
  [
    ('text', 'train', r'\tde "train" 1\.', '\t', r'train.tsv, line 3: an empty text'),
    ('text', 'val', r'\tde "val" 1\.', '', r'val.tsv, line 3: 5 columns instead of 6'),
    (
      'text',
      'val',
      'flickr8k_image',
      'photo',
      r"val.tsv, line 1: no column 'flickr8k_image'; there are: image, photo, en, de, fr, cs",
    ),
    (
      'photos',
      'train',
      'train2_8k.jpg',
      'gone.jpg',
      r'the photo gone.jpg \(train\) is unusable .*--skip_broken',
    ),
    ('photos', 'val', 'val1_8k.jpg', '', 'valid has no example with a photo'),
    (
      'descriptions',
      'task2_val_with_image',
      r'\tde\t',
      '\tfr\t',
      r"task2_val_with_image.tsv, line 7: the language 'fr'",
    ),
  ],
)
def test_what_is_wrong_is_named(root, data, form, file, pattern, text, says):
  edit(root / f'{file}.tsv', pattern, text)
  with pytest.raises(UserError, match=says):
    prepare(f'multi30k/{form}', root, data)
  assert leftovers(data) == []


def test_broken_photos_can_be_left_out(root, data, capsys):
  (root.parent / 'flickr8k' / 'train2_8k.jpg').write_bytes(b'')
  with pytest.raises(UserError, match='train2_8k.jpg .train. is unusable .zero bytes.'):
    prepare('multi30k/photos', root, data)
  assert leftovers(data) == []
  source = open_source('multi30k/photos', data, 'train', source_dir=root, skip_broken=True)
  assert sorted(example['id'] for example in examples(source)) == ['train1.jpg', 'train3.jpg']
  assert 'left out 1' in capsys.readouterr().err


# The real data


def test_the_real_texts(shared_data, data):
  """All pairs, as they stand in the tables."""
  found = {}
  for split in ('train', 'valid', 'test_2016', 'test_2017', 'test_coco'):
    found[split] = open_source('multi30k/text', data, split, EVERY, shared_data / 'multi30k')
  assert [len(source) for source in found.values()] == [29000, 1014, 1000, 1000, 461]
  rows = {
    row['image']: row
    for row in read_table(shared_data / 'multi30k' / 'test_2016_flickr.tsv', ('en', 'cs'))
  }
  for example in examples(found['test_2016']):
    row = rows[example['id']]
    assert [example['text'], *example['targets'], example['french'], example['czech']] == [
      row[name].strip() for name in ('en', 'de', 'fr', 'cs')
    ]


@pytest.mark.parametrize('form', ['photos', 'descriptions'])
def test_the_real_photos(shared_data, data, form):
  """The photos of no split are in another; every one of them is in Flickr8k."""
  builder = Multi30k(source=shared_data / 'multi30k', config=form, data_dir=str(data))
  splits = {}
  for split in ('train', 'valid', 'test_2016'):
    splits[split] = list(builder._examples(form, split))
  assert [len(examples) for examples in splits.values()] == [6993, 242, 243]
  every = [example for examples in splits.values() for example in examples]
  assert (
    len({example['id'] for example in every})
    == len({example['image'] for example in every})
    == 6993 + 242 + 243
  )
  photos = builder._photos()
  assert all(example['image'] in photos for example in every)
  if form == 'descriptions':
    assert {(len(example['en']), len(example['de'])) for example in every} == {(5, 5)}
  (_, first), *_ = builder._generate_examples('test_2016', splits['test_2016'][:3])
  assert np.asarray(Image.open(io.BytesIO(first['image']))).shape == (224, 224, 3)


def test_padding_of_the_real_texts_is_under_12_percent(shared_data):
  """Of the batches that the config trains on: tokens of texts and targets against the room that
  they take.
  """
  config = load_config('configs/translation/multi30k.py')
  rows = read_table(shared_data / 'multi30k' / 'train.tsv', ('en', 'de'))
  texts = []
  for language in ('en', 'de'):
    for row in rows:
      texts.append(moses_tokenize(row[language].strip(), language))
  encoded = train_tokenizer(texts, **config.tokenizer).encode_batch(texts)
  tokens = np.array([len(row) + 1 for row in encoded]).reshape(2, -1)
  assert tokens.max() <= config.data.max_length
  plan = TrainPlan(
    tokens.max(0), config.train.batch_size, tuple(config.data.buckets), 0, config.train.batch_tokens
  )
  batches = [plan[i] for i in range(plan.steps_per_epoch)]
  room = sum(batch.size * batch.length for batch in batches)
  assert max(batch.size * batch.length for batch in batches) <= config.train.batch_tokens
  assert 1 - tokens.sum() / (2 * room) < 0.12 and 1 - tokens[1].sum() / room < 0.12
