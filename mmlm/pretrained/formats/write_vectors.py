"""Writes word vectors as files of word2vec (text and binary), GloVe and fastText.

gensim and `read_vectors` read them. Axes: N words, W width.
"""

import pathlib
from collections.abc import Callable
from typing import NamedTuple

from numpy.typing import NDArray

from mmlm.utils.choices import one_of
from mmlm.utils.errors import UserError
from mmlm.utils.run_dir import atomic_file

_BLOCK = 4096  # words written at once
_BINARY = 'word2vec_binary'


class Format(NamedTuple):
  """How a file is written."""

  has_header: bool  # a line 'N W'
  encode: Callable[[list[str], NDArray], list[bytes]]  # (words, vectors) -> parts of the file


def _encode_text(words: list[str], array: NDArray) -> list[bytes]:
  """Writes nine digits a value, which restore each float32 exactly."""
  lines = []
  for word, vector in zip(words, array.tolist()):
    fields = [word]
    for value in vector:
      fields.append(f'{value:.9g}')
    line = ' '.join(fields) + '\n'
    lines.append(line.encode())
  return lines


def _encode_binary(words: list[str], array: NDArray) -> list[bytes]:
  parts = []
  for word, vector in zip(words, array.astype('<f4')):
    values = vector.tobytes()
    parts.append(word.encode() + b' ' + values + b'\n')
  return parts


FORMATS = {
  'word2vec': Format(has_header=True, encode=_encode_text),
  _BINARY: Format(has_header=True, encode=_encode_binary),
  'glove': Format(has_header=False, encode=_encode_text),
  'fasttext': Format(has_header=True, encode=_encode_text),  # .vec is word2vec's text
}


def write_vectors(
  path: str | pathlib.Path,
  words: list[str],
  array: NDArray,
  format: str = 'word2vec',
) -> None:
  """Writes words and their vectors [N, W] to a file, whole or not at all.

  Raises:
    UserError: an unknown format, or a file name that does not go with it: only word2vec_binary is
      read from a name that ends in .bin.
  """
  has_header, encode = FORMATS[one_of('--format', format, FORMATS)]
  is_binary = format == _BINARY
  if is_binary != str(path).endswith('.bin'):
    ends = 'ends' if is_binary else 'does not end'
    raise UserError(f'--output {path}: a file of the format {format} {ends} in .bin.')
  with atomic_file(path) as file:
    if has_header:
      header = f'{len(words)} {array.shape[1]}\n'
      file.write(header.encode())
    for start in range(0, len(words), _BLOCK):
      stop = start + _BLOCK
      parts = encode(words[start:stop], array[start:stop])
      file.writelines(parts)
