"""Generated set: pictures of Unicode characters, captioned with their lower-cased Unicode names.

The faces are the 16 text faces of DejaVu and STIX General that matplotlib ships; its Display faces
hold a few glyphs only, its cm faces and LastResort carry other glyphs, STIXNonUni and STIXSiz have
private or partial sets. A character is used when it has a name, is no control, space or combining
mark, and stands in at least MIN_FACES faces.

A picture is 32 x 32 grey, white on black, antialiased, at font size 22 on a baseline at row 24, so
that 'c' differs from 'C' and a comma from an apostrophe; centred left to right by its ink. A glyph
that would be clipped (1 in 390) is drawn at the largest smaller size at which it fits, on the same
baseline.

Held out, before any training: one slanted face of each of three designs (sans to choose on, serif
and mono to test on). Slanted faces share symbols with upright ones (28 to 33 % of their pictures
stand pixel for pixel in a training face under the same name), so such pictures are left out:
nothing in `valid` and `test_faces` was seen in training. Held-out characters are those whose hash
of the code point says so (5 %). Of the pictures of a face 11 % have a twin under another name in it
(Latin, Greek and Cyrillic A), which bounds the exact names at 94 %. The nearest training picture
(pixels, squared distance) gives the right name for 64 % of `test_faces`.

  train             training characters in the 13 training faces
  valid             training characters in VALID_FACE, at most 1,500 pictures
  test_faces        training characters in TEST_FACES, at most 3,000 pictures
  test_characters   held-out characters in the training faces, at most 1,000 pictures

The config 'tiny' is the same of 200 letters in 4 faces, for tests and smoke runs.
"""

import collections
import functools
import hashlib
import io
import pathlib
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Any

import matplotlib
import tensorflow_datasets as tfds
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont

from mmlm.data.datasets.builder import DatasetBuilder
from mmlm.utils.progress import progress

SIDE = 32
SIZE = 22
BASELINE = 24
MIN_FACES = 8
F = tfds.features
FACES = (
  'DejaVuSans',
  'DejaVuSans-Bold',
  'DejaVuSans-BoldOblique',
  'DejaVuSans-Oblique',
  'DejaVuSansMono',
  'DejaVuSansMono-Bold',
  'DejaVuSansMono-BoldOblique',
  'DejaVuSansMono-Oblique',
  'DejaVuSerif',
  'DejaVuSerif-Bold',
  'DejaVuSerif-BoldItalic',
  'DejaVuSerif-Italic',
  'STIXGeneral',
  'STIXGeneralBol',
  'STIXGeneralBolIta',
  'STIXGeneralItalic',
)
VALID_FACE = 'DejaVuSans-BoldOblique'
TEST_FACES = ('DejaVuSerif-Italic', 'DejaVuSansMono-Oblique')
# Faces, and how many characters: the first so many letters; None: every character.
FORMS = {
  'full': (FACES, None),
  'tiny': (('DejaVuSans', 'DejaVuSerif-Bold', VALID_FACE, TEST_FACES[0]), 200),
}
LIMITS = {'valid': 1500, 'test_faces': 3000, 'test_characters': 1000}


class UnicodePictures(DatasetBuilder):
  """Features: id ('U+0041/DejaVuSans-Bold'), image (PNG, [32, 32, 1]), caption ('latin capital
  letter a').
  """

  name = 'unicode_pictures'
  FIELDS = {'id': 'id', 'image': 'image', 'targets': 'caption'}
  BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in FORMS]

  def _info(self) -> tfds.core.DatasetInfo:
    features = {
      'id': F.Text(),
      'image': F.Image(shape=(SIDE, SIDE, 1)),
      'caption': F.Text(),
    }
    return tfds.core.DatasetInfo(builder=self, features=F.FeaturesDict(features))

  def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
    splits = make_splits(*FORMS[self.form])
    return {split: self._generate_examples(split, pictures) for split, pictures in splits.items()}

  def _generate_examples(
    self,
    split: str,
    pictures: Any,
  ) -> Iterator:
    for (code, face), picture in progress(
      pictures.items(),
      f'{self.name} {split}',
    ):
      file = io.BytesIO()
      Image.frombytes('L', (SIDE, SIDE), picture).save(file, 'PNG', compress_level=1)
      key = f'U+{code:04X}/{face}'
      yield (
        key,
        {'id': key, 'image': file.getvalue(), 'caption': unicodedata.name(chr(code)).lower()},
      )


def make_splits(faces: tuple[str, ...] = FACES, characters: int | None = None) -> dict:
  """Split -> {(code point, face): SIDE * SIDE grey bytes}."""
  codes = _codes()
  if characters:
    codes = [code for code in codes if unicodedata.category(chr(code)) in ('Ll', 'Lu')][:characters]
  splits = {split: {} for split in ('train', *LIMITS)}
  held_out = {VALID_FACE: 'valid'} | dict.fromkeys(TEST_FACES, 'test_faces')
  for face in faces:
    for code, picture in _render(face, codes):
      if _hash(code) % 20:
        splits[held_out.get(face, 'train')][code, face] = picture
      elif face not in held_out:
        splits['test_characters'][code, face] = picture
  trained = {(code, picture) for (code, _), picture in splits['train'].items()}
  for split, limit in LIMITS.items():
    unseen = [
      (key, picture)
      for key, picture in splits[split].items()
      if (
        key[0],
        picture,
      )
      not in trained
    ]
    splits[split] = dict(
      sorted(
        unseen,
        key=lambda item: _hash(*item[0]),
      )[:limit]
    )
  return splits


def _hash(*key: object) -> int:
  return int.from_bytes(hashlib.sha256('/'.join(map(str, key)).encode()).digest()[:8])


def _file(face: str) -> str:
  return str(pathlib.Path(matplotlib.get_data_path(), 'fonts', 'ttf', f'{face}.ttf'))


@functools.cache
def _map(face: str) -> frozenset[int]:
  return frozenset(FT2Font(_file(face)).get_charmap())


def _codes() -> list:
  """Code points, in order, that have a name and a visible glyph in enough faces."""
  counts = collections.Counter(code for face in FACES for code in _map(face))
  return sorted(
    code
    for code, count in counts.items()
    if count >= MIN_FACES
    and unicodedata.category(chr(code))[0] not in 'CZM'
    and unicodedata.name(chr(code), '')
  )


def _render(face: str, codes: Iterable[int]) -> Iterator[tuple[int, bytes]]:
  """Yields (code, grey bytes), in order, of the codes that the face has and that leave ink."""
  fonts = []
  for size in range(SIZE, SIZE // 2, -1):
    fonts.append(ImageFont.truetype(_file(face), size, layout_engine=ImageFont.Layout.BASIC))
  for code in sorted(_map(face).intersection(codes)):
    for font in fonts:
      left, top, right, bottom = font.getbbox(chr(code), anchor='ls')
      if right - left <= SIDE and top + BASELINE >= 0 and bottom + BASELINE <= SIDE:
        break
    picture = Image.new('L', (SIDE, SIDE))
    ImageDraw.Draw(picture).text(
      (
        (SIDE - right + left) // 2 - left,
        BASELINE,
      ),
      chr(code),
      255,
      font,
      anchor='ls',
    )
    if picture.getbbox():
      yield code, picture.tobytes()
