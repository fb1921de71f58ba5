"""Generated numerals: only the picture shows the masked word, no number is in two splits."""

import io
import random
import re

import numpy as np
import pytest
from num2words import num2words
from PIL import Image

from mmlm.data.datasets import preparation
from mmlm.data.datasets.numerals import FRAME, draw, mask_one
from mmlm.data.text import MASK


@pytest.fixture(scope='module')
def examples(tmp_path_factory):
  """{split: examples} with all texts."""
  folder = tmp_path_factory.mktemp('data')
  fields = {'id': 'id', 'image': 'image', 'text': 'masked', 'targets': 'de', 'english': 'en'}
  sources = {}
  for split in ('train', 'valid', 'test'):
    sources[split] = preparation.open_source('numerals/tiny', folder, split, fields)
  plain = preparation.open_source('numerals/tiny', folder, 'test')
  assert plain[0] == {key: value for key, value in sources['test'][0].items() if key != 'english'}
  return {split: [source[i] for i in range(len(source))] for split, source in sources.items()}


def test_no_number_is_in_two_splits(examples):
  assert {split: len(rows) for split, rows in examples.items()} == {
    'train': 200,
    'valid': 32,
    'test': 32,
  }
  numbers = [int(row['id']) for rows in examples.values() for row in rows]
  assert len(set(numbers)) == 264 and min(numbers) >= 1 and max(numbers) < 100_000


def test_texts_are_those_of_the_number(examples):
  for row in sum(examples.values(), []):
    assert row['english'] == num2words(int(row['id'])) and row['targets'] == (
      num2words(int(row['id']), lang='de'),
    )
  assert num2words(23, lang='de') == 'dreiundzwanzig'


def test_exactly_one_word_that_tells_a_digit_is_masked(examples):
  places = set()
  for row in sum(examples.values(), []):
    before, after = row['text'].split(MASK)
    english = row['english']
    word = english[len(before) : len(english) - len(after)]
    assert before + word + after == english
    assert re.fullmatch('[a-z]+', word) and word not in FRAME
    places.add((not before, not after))
  assert len(places) > 2  # first, last and middle words


def test_the_same_text_stands_for_several_numbers():
  """A masked text alone leaves several numbers possible, of which the picture shows one."""
  texts = {mask_one(num2words(number), random.Random(0)) for number in range(20, 100, 10)}
  assert texts == {MASK}
  assert {mask_one('twenty-three', random.Random(i)) for i in range(20)} == {
    f'twenty-{MASK}',
    f'{MASK}-three',
  }
  assert {mask_one('one hundred and five', random.Random(i)) for i in range(20)} == {
    f'{MASK} hundred and five',
    f'one hundred and {MASK}',
  }


def picture(data) -> np.ndarray:
  return np.asarray(Image.open(io.BytesIO(data)))


def test_pictures_show_the_digits(examples):
  """White digits in squares of their own, right-aligned: the same digit in the same square looks
  the same, others differ.
  """
  cells = {}
  for row in sum(examples.values(), []):
    pixels = picture(row['image'])
    assert pixels.shape == (16, 80) and pixels.dtype == np.uint8
    for place, digit in enumerate(f'{row["id"]:>5}'):
      cells.setdefault((place, digit), set()).add(pixels[:, 16 * place : 16 * place + 16].tobytes())
  assert all(len(found) == 1 for found in cells.values())
  for place in range(5):
    looks = {digit: next(iter(found)) for (at, digit), found in cells.items() if at == place}
    assert len(set(looks.values())) == len(looks) >= 9
    assert all(any(look) == (digit != ' ') for digit, look in looks.items())


def test_different_numbers_have_different_pictures():
  assert len({draw(number) for number in range(1, 2000)}) == 1999
  assert picture(draw(7))[:, :64].max() == 0 and picture(draw(70000))[:, :16].max() == 255
