"""A user's own parallel texts: two files of as many lines, or a table with a header.

data.fields = {'text': 'en', 'targets': 'de'} and a split
  my/train      reads my/train.en and my/train.de, line by line
  my/train.tsv  reads the columns en and de
"""

import pathlib

from mmlm.data.sources.plain_text import read_packed
from mmlm.data.sources.source import SplitRequest
from mmlm.utils.errors import UserError

Pairs = list[tuple[str, str]]


class ParallelTexts:
  """The lines of a split as examples {'id': number of the line, 'text', 'targets'}.

  Raises:
    UserError: with file and line: a missing file, unequal numbers of lines, an empty line, bytes
      that are not UTF-8, a table row with too few or too many columns, a missing column.
  """

  identity = ''

  def __init__(
    self,
    split: str,
    fields: dict[str, str],
  ):
    if set(fields) != {'text', 'targets'}:
      raise UserError(
        f"data.fields={fields}: parallel texts need {{'text': LANGUAGE, 'targets': LANGUAGE}}."
      )
    read = _read_table_pairs if split.endswith('.tsv') else _read_file_pairs
    self.split = split
    self.pairs = read(split, fields['text'], fields['targets'])

  def __len__(self) -> int:
    return len(self.pairs)

  def __getitem__(self, i: int) -> dict:
    text, target = self.pairs[i]
    return {'id': f'{self.split}:{i + 1}', 'text': text, 'targets': (target,)}


def open_parallel_texts(request: SplitRequest) -> ParallelTexts:
  """Opens a split of parallel texts."""
  return ParallelTexts(request.split, request.fields)


def read_lines(path: str | pathlib.Path) -> list[str]:
  """Returns the lines of a UTF-8 file (also packed by xz), without ends and byte order mark."""
  assert __doc__
  lines = read_packed(path, __doc__).split(b'\n')
  if lines[-1] == b'':
    lines = lines[:-1]
  return [decode_line(line, path, number) for number, line in enumerate(lines, 1)]


def decode_line(
  line: bytes,
  path: str | pathlib.Path,
  number: int,
) -> str:
  """Decodes a line of UTF-8; a UserError names file and line."""
  try:
    return line.decode('utf-8').strip('\r')
  except UnicodeDecodeError as error:
    raise UserError(
      f'{path}, line {number}: byte {error.start + 1} is no UTF-8 ({error.reason}).'
    ) from None


def read_table(path: str | pathlib.Path, required: tuple[str, ...]) -> list[dict[str, str]]:
  """Returns the tab-separated rows below a header, as {column: text}; quotes are literal.

  Raises:
    UserError: a required column is missing, or a row has another number of columns.
  """
  header, *lines = read_lines(path) or ['']
  columns = header.split('\t')
  for name in required:
    if name not in columns:
      raise UserError(f'{path}, line 1: no column {name!r}; there are: {", ".join(columns)}.')
  rows = []
  for number, line in enumerate(lines, 2):
    cells = line.split('\t')
    if len(cells) != len(columns):
      raise UserError(f'{path}, line {number}: {len(cells)} columns instead of {len(columns)}.')
    rows.append(dict(zip(columns, cells)))
  return rows


def _read_file_pairs(
  split: str,
  source: str,
  target: str,
) -> Pairs:
  source_path = f'{split}.{source}'
  target_path = f'{split}.{target}'
  texts = read_lines(source_path)
  targets = read_lines(target_path)
  if len(texts) != len(targets):
    raise UserError(
      f'{source_path} has {len(texts)} lines, {target_path} has {len(targets)}: '
      'line by line they must be translations.'
    )
  return _checked(list(zip(texts, targets)), (source_path, target_path), 1)


def _read_table_pairs(
  path: str,
  source: str,
  target: str,
) -> Pairs:
  rows = read_table(path, (source, target))
  return _checked([(row[source], row[target]) for row in rows], (path, path), 2)


def _checked(
  pairs: Pairs,
  paths: tuple[str, str],
  first_line: int,
) -> Pairs:
  """Returns the pairs; an empty text is an error."""
  for number, pair in enumerate(pairs, first_line):
    for text, path in zip(pair, paths):
      if not text.strip():
        raise UserError(f'{path}, line {number}: empty. Leave such pairs out of both files.')
  if not pairs:
    raise UserError(f'{paths[0]}: no line in it.')
  return pairs
