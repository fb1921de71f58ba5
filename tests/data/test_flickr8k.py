import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from mmlm.data.datasets import flickr8k
from mmlm.data.datasets.preparation import prepare
from mmlm.data.sources.tfds_source import TfdsSource
from mmlm.utils.errors import UserError

NAMES = {'train': ['t1.jpg', 't2.jpg', 't3.jpg'], 'dev': ['d1.jpg'], 'test': ['e1.jpg']}
EVERY = [(split, name) for split, names in NAMES.items() for name in names]
FIELDS = {'id': 'id', 'image': 'image', 'targets': 'captions_en'}


def jpeg(name):
  file = io.BytesIO()
  pixels = np.random.default_rng(list(name.encode())).integers(0, 256, (8, 12, 3), np.uint8)
  Image.fromarray(pixels).save(file, 'JPEG')
  return file.getvalue()


def captions(name):
  return [f'A "dog" {name} {i} .' for i in range(5)]


def tables(root):
  """Captions and pictures as tables and archives."""
  english = [
    f'{split}\t{name}\t{i}\t{text}'
    for split, name in [*EVERY, ('rest', 'r1.jpg')]
    for i, text in enumerate(captions(name))
  ]
  (root / 'captions_en.tsv').write_text(
    '\n'.join(['split\timage\tindex\tcaption', *english]) + '\n'
  )
  chinese = [f'test\te1.jpg\t0\t{kind}\t{kind} 狗' for kind in ('written', 'translated')]
  (root / 'captions_zh.tsv').write_text(
    '\n'.join(['split\timage\tindex\tkind\tcaption', *chinese]) + '\n'
  )
  for split, names in NAMES.items():
    with zipfile.ZipFile(root / f'images_{split}.zip', 'w') as archive:
      for name in names:
        archive.writestr(name, jpeg(name))


def original(root):
  """The files as they were published, of which the real list names one wrongly."""
  (root / 'Flicker8k_Dataset').mkdir()
  for _, name in EVERY:
    (root / 'Flicker8k_Dataset' / name).write_bytes(jpeg(name))
  (root / 'text').mkdir()
  lines = [f'{name}#{i}\t{text}' for _, name in EVERY for i, text in enumerate(captions(name))]
  (root / 'text' / 'Flickr8k.token.txt').write_text(
    '\n'.join([*lines, 'x.jpg.1#0\tno such picture']) + '\n'
  )
  for split, names in NAMES.items():
    (root / 'text' / f'Flickr_8k.{split}Images.txt').write_text('\n'.join(names) + '\n')


@pytest.fixture
def root(tmp_path):
  (tmp_path / 'source').mkdir()
  return tmp_path / 'source'


@pytest.mark.parametrize('layout', [tables, original])
def test_every_layout_gives_the_official_split(layout, root, tmp_path):
  layout(root)
  folder = prepare('flickr8k', root, tmp_path / 'data')
  for split, names in NAMES.items():
    source = TfdsSource(folder, split, FIELDS)
    examples = {source[i]['id']: source[i] for i in range(len(source))}
    assert sorted(examples) == names
    for name in names:
      assert examples[name] == {'id': name, 'image': jpeg(name), 'targets': tuple(captions(name))}


def test_chinese_are_the_written_ones(root, tmp_path):
  tables(root)
  folder = prepare('flickr8k', root, tmp_path / 'data')
  assert TfdsSource(folder, 'test', FIELDS | {'targets': 'captions_zh'})[0]['targets'] == (
    'written 狗',
  )
  with pytest.raises(UserError, match='captions_zh'):
    TfdsSource(folder, 'train', FIELDS | {'targets': 'captions_zh'})


@pytest.mark.parametrize('broken', [b'', jpeg('t2.jpg')[:-40], None])
def test_a_broken_picture_stops_or_is_counted(broken, root, tmp_path, capsys):
  original(root)
  path = root / 'Flicker8k_Dataset' / 't2.jpg'
  path.unlink() if broken is None else path.write_bytes(broken)
  with pytest.raises(UserError, match='t2.jpg.*--skip_broken'):
    prepare('flickr8k', root, tmp_path / 'data')
  assert [
    str(path.relative_to(tmp_path)) for path in tmp_path.glob('data/**/*') if path.is_file()
  ] == ['data/.flickr8k.lock']
  folder = prepare('flickr8k', root, tmp_path / 'data', skip_broken=True)
  assert len(TfdsSource(folder, 'train', FIELDS)) == 2
  assert 'left out 1' in capsys.readouterr().err


def test_what_is_missing_is_said(root, tmp_path):
  def fails(says):
    with pytest.raises(UserError, match=says):
      prepare('flickr8k', root, tmp_path / 'data')

  fails('no Flickr8k here')
  tables(root)
  for archive in root.glob('*.zip'):
    archive.unlink()
  fails('no pictures')
  (root / 'captions_en.tsv').write_text('split\timage\tindex\tcaption\ntrain\ta.jpg\n')
  fails('line 2: 2 columns')
  (root / 'captions_en.tsv').unlink()
  original(root)
  (root / 'text' / 'Flickr_8k.devImages.txt').write_text('')
  fails("no names of the split 'dev'")
  (root / 'text' / 'Flickr_8k.devImages.txt').unlink()
  fails('Flickr_8k.devImages.txt')


def test_the_real_source(shared_data):
  names, english, chinese, files = flickr8k.read_source(shared_data / 'flickr8k')
  assert {split: len(names[split]) for split in flickr8k.SPLITS} == {
    'train': 6000,
    'dev': 1000,
    'test': 1000,
  }
  every = [name for split in flickr8k.SPLITS for name in names[split]]
  assert len(set(every)) == 8000 and {len(english[name]) for name in every} == {5}
  assert {len(chinese[name]) for name in every} == {5}
  for name in every[::800]:
    assert flickr8k.decode_picture(files[name].read_bytes()).shape == (224, 224, 3)
