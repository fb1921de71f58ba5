"""A user's own parallel texts: two files of as many lines, or a table.

data.fields = {'text': 'en', 'targets': 'de'}   and a split   my/train      reads my/train.en and my/train.de, line by line
                                                              my/train.tsv  reads the columns en and de of a table with a header
"""

from mmlm.data.sources.plain_text import read_packed
from mmlm.utils.errors import UserError


class ParallelTexts:
  """The lines of a split as examples {'id': number of the line, 'text', 'targets'}.

  Raises UserError with file and line: no such file, unequal numbers of lines, an empty line, bytes that are no UTF-8, a row of a
  table with too few or too many columns, a column that is not there.
  """

  def __init__(self, split: str, fields: dict):
    if set(fields) != {'text', 'targets'}:
      raise UserError(
        f"data.fields={fields}: parallel texts need {{'text': LANGUAGE, 'targets': LANGUAGE}}."
      )
    if split.endswith('.tsv'):
      read = _table
    else:
      read = _files
    self.split = split
    self.pairs = read(split, fields['text'], fields['targets'])

  def __len__(self):
    return len(self.pairs)

  def __getitem__(self, i) -> dict:
    text, target = self.pairs[i]
    return {'id': f'{self.split}:{i + 1}', 'text': text, 'targets': (target,)}


def read_lines(path) -> list[str]:
  """The lines of a UTF-8 file, packed by xz or not, without their ends and a byte order mark."""
  lines = read_packed(path, __doc__).split(b'\n')
  result = []
  for number, line in enumerate(lines[:-1] if lines[-1] == b'' else lines, 1):
    result.append(decode_line(line, path, number))
  return result


def decode_line(line: bytes, path, number: int) -> str:
  try:
    return line.decode('utf-8').strip('\r')
  except UnicodeDecodeError as error:
    raise UserError(
      f'{path}, line {number}: byte {error.start + 1} is no UTF-8 ({error.reason}).'
    ) from None


def _files(split, source, target) -> list[tuple[str, str]]:
  paths = [f'{split}.{language}' for language in (source, target)]
  texts, targets = map(read_lines, paths)
  if len(texts) != len(targets):
    raise UserError(
      f'{paths[0]} has {len(texts)} lines, {paths[1]} has {len(targets)}: line by line they must be translations.'
    )
  return _checked(list(zip(texts, targets)), paths, 1)


def _table(path, source, target) -> list[tuple[str, str]]:
  return _checked(
    [(row[source], row[target]) for row in read_table(path, (source, target))], [path, path], 2
  )


def read_table(path, wanted: tuple) -> list[dict]:
  """Tab-separated rows below a header, as {column: text}; quotes are literal. UserError: a column of `wanted` is not there."""
  header, *lines = read_lines(path) or ['']
  columns = header.split('\t')
  for name in wanted:
    if name not in columns:
      raise UserError(f'{path}, line 1: no column {name!r}; there are: {", ".join(columns)}.')
  rows = [line.split('\t') for line in lines]
  for number, row in enumerate(rows, 2):
    if len(row) != len(columns):
      raise UserError(f'{path}, line {number}: {len(row)} columns instead of {len(columns)}.')
  return [dict(zip(columns, row)) for row in rows]


def _checked(pairs, paths, first) -> list[tuple[str, str]]:
  for number, pair in enumerate(pairs, first):
    for text, path in zip(pair, paths):
      if not text.strip():
        raise UserError(f'{path}, line {number}: empty. Leave such pairs out of both files.')
  if not pairs:
    raise UserError(f'{paths[0]}: no line in it.')
  return pairs
