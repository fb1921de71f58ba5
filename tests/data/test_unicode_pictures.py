import collections
import unicodedata

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from mmlm.data.datasets import unicode_pictures as up
from mmlm.data.datasets.preparation import open_source
from mmlm.data.transforms.image import decode_picture

EXPECTED = ('train', 'valid', 'test_faces', 'test_characters')


def pixels(picture):
  return np.frombuffer(picture, np.uint8).reshape(up.SIDE, up.SIDE)


@pytest.fixture(scope='module')
def splits():
  return up.make_splits()


@pytest.fixture(scope='module')
def face():
  codes = up._codes()
  return {code: pixels(picture) for code, picture in up._render('DejaVuSans', codes)}


def test_sizes(splits):
  assert tuple(splits) == EXPECTED
  assert len(splits['train']) > 25_000 and len({code for code, _ in splits['train']}) > 2_900
  for split, limit in up.LIMITS.items():
    assert len(splits[split]) == limit


def test_what_is_held_out_is_held_out(splits):
  held = {up.VALID_FACE, *up.TEST_FACES}

  def faces(split):
    return {face for _, face in splits[split]}

  def codes(split):
    return {code for code, _ in splits[split]}

  assert faces('valid') == {up.VALID_FACE} and faces('test_faces') == set(up.TEST_FACES)
  assert faces('train') == faces('test_characters') == set(up.FACES) - held
  assert codes('valid') | codes('test_faces') <= codes('train')
  assert not codes('test_characters') & codes('train')
  trained = collections.defaultdict(set)
  for (code, _), picture in splits['train'].items():
    trained[code].add(picture)
  assert not any(
    picture in trained[code]
    for split in ('valid', 'test_faces')
    for (code, _), picture in splits[split].items()
  )


def test_characters_have_names_and_ink(splits):
  for split in splits.values():
    for (code, _), picture in split.items():
      assert unicodedata.name(chr(code)) and unicodedata.category(chr(code))[0] not in 'CZM'
      assert max(picture) > 100


def test_the_baseline_tells_size_and_place(face):
  def rows(char):
    return np.flatnonzero(face[ord(char)].max(1) > 128)

  assert len(rows('C')) > len(rows('c')) + 3
  assert rows("'")[-1] < rows(',')[0]
  assert rows('x')[-1] == rows('X')[-1] == up.BASELINE - 1
  assert rows('p')[-1] > up.BASELINE


def test_no_glyph_is_clipped(face):
  """Every picture is the whole glyph of some size, of the common size nearly always."""
  sizes = collections.Counter()
  fonts = {
    size: ImageFont.truetype(up._file('DejaVuSans'), size, layout_engine=ImageFont.Layout.BASIC)
    for size in range(up.SIZE, 10, -1)
  }
  for code, picture in face.items():
    for size, font in fonts.items():
      canvas = Image.new('L', (3 * up.SIDE, 3 * up.SIDE))
      ImageDraw.Draw(canvas).text(
        (up.SIDE, up.SIDE + up.BASELINE), chr(code), 255, font, anchor='ls'
      )
      whole = np.asarray(canvas)
      inside = whole[up.SIDE : 2 * up.SIDE]
      if inside.sum() == whole.sum() and np.array_equal(
        inside[:, inside.any(0)], picture[:, picture.any(0)]
      ):
        sizes[size] += 1
        break
  assert sum(sizes.values()) == len(face)
  assert 0.99 * len(face) < sizes[up.SIZE] < len(face)


def test_the_glyph_is_in_the_face():
  missing = [code for code in up._codes() if code not in up._map('DejaVuSansMono')]
  assert len(missing) > 100
  assert dict(up._render('DejaVuSansMono', missing)) == {}  # no box for what the face lacks


def test_built_and_read_back(tmp_path):
  made = up.make_splits(*up.FORMS['tiny'])
  for split in EXPECTED:
    source = open_source('unicode_pictures/tiny', tmp_path, split)
    assert len(source) == len(made[split]) > 10
    for i in range(0, len(source), 7):
      example = source[i]
      code, face = example['id'].split('/')
      code = int(code.removeprefix('U+'), 16)
      assert example['targets'] == (unicodedata.name(chr(code)).lower(),)
      shown = decode_picture(example['image'], mode='L')[:, :, 0]
      np.testing.assert_array_equal(shown, pixels(made[split][code, face]))
