"""Generated set: numerals in English with one word masked, the same in German, and a picture of the
digits.

Only the picture tells the masked word: text alone can guess one of nine or so. Numbers from 1 to
99,999, each in one split only.
"""

import functools
import io
import pathlib
import random
import re
from collections.abc import Iterator
from typing import Any

import matplotlib
import tensorflow_datasets as tfds
from num2words import num2words
from PIL import Image, ImageDraw, ImageFont

from mmlm.data.datasets.builder import DatasetBuilder
from mmlm.data.text import MASK
from mmlm.utils.progress import progress

# a digit stands in a square of its own
CELL = 16
DIGITS = 5
F = tfds.features
SIZES = {
  'full': {'train': 30000, 'valid': 500, 'test': 1000},
  'tiny': {'train': 200, 'valid': 32, 'test': 32},
}
# What is never masked: words that are the same in nearly all numerals.
FRAME = {'hundred', 'thousand', 'and'}


class Numerals(DatasetBuilder):
  """Features: id (the number), image (PNG, [16, 80, 1]), en ('twenty-three'), masked
  ('twenty-\ufffc'), de ('dreiundzwanzig').
  """

  name = 'numerals'
  FIELDS = {'id': 'id', 'image': 'image', 'text': 'masked', 'targets': 'de'}
  BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in SIZES]

  def _info(self) -> tfds.core.DatasetInfo:
    features = {
      'id': F.Text(),
      'image': F.Image(shape=(CELL, CELL * DIGITS, 1)),
    } | dict.fromkeys(('en', 'masked', 'de'), F.Text())
    return tfds.core.DatasetInfo(builder=self, features=F.FeaturesDict(features))

  def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
    sizes = SIZES[self.form]
    numbers = iter(
      random.Random(0).sample(
        range(1, 10**DIGITS),
        sum(sizes.values()),
      )
    )
    result = {}
    for split, size in sizes.items():
      result[split] = self._generate_examples(split, [next(numbers) for _ in range(size)])
    return result

  def _generate_examples(
    self,
    split: str,
    numbers: Any,
  ) -> Iterator:
    for number in progress(numbers, f'{self.name} {split}'):
      english = num2words(number)
      texts = {
        'en': english,
        'masked': mask_one(english, random.Random(number)),
        'de': num2words(number, lang='de'),
      }
      yield number, {'id': str(number), 'image': draw(number), **texts}


def mask_one(text: str, rng: random.Random) -> str:
  """The text with one of its words that tell a digit replaced by MASK."""
  words = [match for match in re.finditer(r'[a-z]+', text) if match[0] not in FRAME]
  word = rng.choice(words)
  return text[: word.start()] + MASK + text[word.end() :]


@functools.cache
def _font():
  path = pathlib.Path(matplotlib.get_data_path(), 'fonts', 'ttf', 'DejaVuSansMono.ttf')
  return ImageFont.truetype(str(path), CELL, layout_engine=ImageFont.Layout.BASIC)


def draw(number: int) -> bytes:
  """The digits as a PNG, right-aligned, white on black."""
  picture = Image.new('L', (CELL * DIGITS, CELL))
  for place, digit in enumerate(reversed(str(number)), 1):
    ImageDraw.Draw(picture).text(
      (
        CELL * (DIGITS - place) + CELL // 2,
        CELL // 2,
      ),
      digit,
      255,
      _font(),
      anchor='mm',
    )
  file = io.BytesIO()
  picture.save(file, 'PNG')
  return file.getvalue()
