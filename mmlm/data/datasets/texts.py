"""Running text for language models.

Tiny Shakespeare (Karpathy 2015) and the Brown corpus (Francis & Kucera 1979).
"""

from collections.abc import Iterable, Iterator
from typing import Any

import tensorflow_datasets as tfds

from mmlm.data.datasets.builder import SourceDatasetBuilder
from mmlm.data.sources.parallel_text import read_lines
from mmlm.data.sources.plain_text import read_text
from mmlm.utils.errors import UserError

F = tfds.features


class RunningText(SourceDatasetBuilder, skip_registration=True):
  """Features: id and text; the documents of a split stand in the order of the original."""

  FIELDS = {'id': 'id', 'targets': 'text'}

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      features=F.FeaturesDict({'id': F.Text(), 'text': F.Text()}),
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
    return {split: self._generate_examples(rows) for split, rows in self.read_splits().items()}

  def _generate_examples(self, rows: Iterable) -> Iterator:
    for number, (name, text) in enumerate(rows):
      yield number, {'id': name, 'text': text}

  def read_splits(self) -> dict[str, list[tuple[str, str]]]:
    """Returns {split: (id, text) of each document}."""
    raise NotImplementedError


class TinyShakespeare(RunningText):
  """One document a split: the first nine tenths of its 1,115,394 characters to train on, the rest
  to validate.
  """

  name = 'tiny_shakespeare'
  FOLDER = 'text/lm'
  HOW = """\
Get input.txt of https://github.com/karpathy/char-rnn (data/tinyshakespeare):  ./launch.sh prepare
tiny_shakespeare --source FOLDER
FOLDER holds it as input.txt or tinyshakespeare.txt"""

  def read_splits(self) -> dict[str, list]:
    text = read_text(self.find('input.txt', 'tinyshakespeare.txt'))
    border = len(text) * 9 // 10
    return {
      'train': [('train', text[:border])],
      'valid': [('valid', text[border:])],
    }


class Brown(RunningText):
  """57,340 sentences of words between spaces, in order. Of twenty stretches of BLOCK sentences one
  is for validation and one for the test, so that all of them hold every kind of text.
  """

  name = 'brown'
  FOLDER = 'text/lm'
  BLOCK = 100
  HOW = """\
Get the Brown corpus (nltk.download('brown') gives it) and write a sentence a line, words between
spaces, without tags:
  ./launch.sh prepare brown --source FOLDER, which holds it as brown.txt (.xz)"""

  def read_splits(self) -> dict[str, list]:
    path = self.find('brown.txt', 'brown.txt.xz')
    found = {'train': [], 'valid': [], 'test': []}
    for number, line in enumerate(read_lines(path)):
      if not line.strip():
        raise UserError(f'{path}, line {number + 1}: empty.')
      place = number // self.BLOCK % 20
      found['valid' if place == 18 else 'test' if place == 19 else 'train'].append(
        (f'line {number + 1}', line.strip())
      )
    return found
