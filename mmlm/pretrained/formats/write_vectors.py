"""Word vectors into the files of word2vec (text and binary), GloVe and fastText, which gensim and `read_vectors` read.

Axes: N words, W width.
"""

import numpy as np

from mmlm.utils.choices import one_of
from mmlm.utils.errors import UserError
from mmlm.utils.run_dir import atomic_file

_BLOCK = 4096  # words written at once


def _text(words, array) -> list[bytes]:
  """Nine digits give each float32 back as it was."""
  result = []
  for word, row in zip(words, array.tolist()):
    result.append(f'{word} {" ".join([f"{value:.9g}" for value in row])}\n'.encode())
  return result


def _binary(words, array) -> list[bytes]:
  result = []
  for word, row in zip(words, array.astype('<f4')):
    result.append(word.encode() + b' ' + row.tobytes() + b'\n')
  return result


# format: (whether a line 'N W' comes first, what writes words). fastText's .vec is word2vec's text.
FORMATS = {
  'word2vec': (True, _text),
  'word2vec_binary': (True, _binary),
  'glove': (False, _text),
  'fasttext': (True, _text),
}


def write_vectors(path, words: list[str], array: np.ndarray, form: str = 'word2vec') -> None:
  """Words and their vectors [N, W] to a file, whole or not at all.

  Raises UserError: an unknown format, a name that does not go with it (only word2vec_binary is read from a name in .bin).
  """
  header, write = FORMATS[one_of('--format', form, FORMATS)]
  if (form == 'word2vec_binary') != str(path).endswith('.bin'):
    raise UserError(
      f'--output {path}: a file of the format {form} {"ends" if form == "word2vec_binary" else "does not end"} in .bin.'
    )
  with atomic_file(path) as file:
    if header:
      file.write(f'{len(words)} {array.shape[1]}\n'.encode())
    for start in range(0, len(words), _BLOCK):
      file.writelines(write(words[start : start + _BLOCK], array[start : start + _BLOCK]))
