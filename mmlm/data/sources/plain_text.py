"""Plain text as it lies: a file, or a folder of files, in UTF-8 (packed by xz or not), and parts of it.

    data.name = 'text'   and a split   my/book.txt          the file is one document
                                       my/book.txt[:90%]    its first nine tenths in characters; [90%:] is the rest
                                       my/folder            every *.txt below it is a document, in the order of their names
    data.fields = {'documents': 'line'}                     a document a line; 'paragraph': what stands between empty lines; 'file'

With several documents a part is of documents, not of characters.
"""

import codecs
import lzma
import pathlib
import re

from mmlm.utils.errors import UserError

DOCUMENTS = ('file', 'paragraph', 'line')
_PART = re.compile(r'(.*?)(?:\[(\d*)%?:(\d*)%?\])?', re.DOTALL)


class PlainTexts:
  """The documents of a split as examples {'id', 'targets': (text,), 'text': text}, each text exactly as it lies.

  Raises UserError naming file and line: no such file, bytes that are no UTF-8, no text in it.
  """

  def __init__(self, split: str, fields: dict):
    kind = fields.get('documents', 'file')
    if set(fields) - {'documents'} or kind not in DOCUMENTS:
      raise UserError(
        f"data.fields={fields}: plain text has {{'documents': one of {', '.join(DOCUMENTS)}}}."
      )
    path, low, high = _PART.fullmatch(split).groups()
    paths = _files(pathlib.Path(path))
    found = []
    for file in paths:
      for place, text in _documents(read_text(file), kind):
        found.append((f'{file}{place}', text))
    self.texts = _part(
      [(name, text) for name, text in found if text.strip()], int(low or 0), int(high or 100), split
    )
    if not self.texts:
      raise UserError(f'{split}: no text in it.')

  def __len__(self):
    return len(self.texts)

  def __getitem__(self, i) -> dict:
    name, text = self.texts[i]
    return {'id': name, 'targets': (text,), 'text': text}


def read_packed(path, about: str) -> bytes:
  """A file, packed by xz or not, without a byte order mark; where it cannot be read the UserError ends with `about`."""
  try:
    data = pathlib.Path(path).read_bytes()
    data = (lzma.decompress(data) if str(path).endswith('.xz') else data).removeprefix(
      codecs.BOM_UTF8
    )
  except OSError as error:
    raise UserError(f'{path}: {error.strerror}.\n{about}') from None
  except lzma.LZMAError as error:
    raise UserError(f'{path}: cannot be unpacked ({error}).') from None
  return data


def read_text(path) -> str:
  """A file in UTF-8, packed by xz or not, without a byte order mark; UserError names the line that is none."""
  data = read_packed(path, __doc__)
  try:
    return data.decode('utf-8')
  except UnicodeDecodeError as error:
    line = data.count(b'\n', 0, error.start) + 1
    column = error.start - data.rfind(b'\n', 0, error.start)
    raise UserError(
      f'{path}, line {line}: byte {column} is no UTF-8 ({error.reason}). Convert the file first (iconv -t utf-8).'
    ) from None


def _files(path: pathlib.Path) -> list[pathlib.Path]:
  if not path.is_dir():
    return [path]
  files = sorted(file for ending in ('*.txt', '*.txt.xz') for file in path.rglob(ending))
  if not files:
    raise UserError(f'{path}: no *.txt in this folder.')
  return files


def _documents(text: str, kind: str) -> list[tuple[str, str]]:
  """[(what the document is called after its file, its text)]"""
  if kind == 'file':
    return [('', text)]
  parts = re.split(r'\n' if kind == 'line' else r'\n\s*\n', text)
  result = []
  for number, part in enumerate(parts, 1):
    result.append((f', {kind} {number}', part.removesuffix('\r')))
  return result


def _part(documents: list, low: int, high: int, split: str) -> list[tuple[str, str]]:
  """From `low` to `high` percent of the documents, or of the characters of the only one."""
  if not 0 <= low < high <= 100:
    raise UserError(
      f'{split}: expected two percentages such as [:90%] or [90%:], the first below the second.'
    )

  def cut(whole):
    return whole[len(whole) * low // 100 : len(whole) * high // 100]

  if len(documents) != 1 or (low, high) == (0, 100):
    return cut(documents)
  ((name, text),) = documents
  if part := cut(text):
    return [(name, part)]
  return []
