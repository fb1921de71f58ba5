"""Plain text: a file, or a folder of files, in UTF-8 (also packed by xz), and shares of it.

data.name = 'text' and a split
  my/book.txt          the file is one document
  my/book.txt[:90%]    its first nine tenths in characters; [90%:] is the rest
  my/folder            every *.txt below it is a document, in the order of their names
data.fields = {'documents': 'line'}: a document a line; 'paragraph': between empty lines; 'file'

With several documents a share is of documents, not of characters.
"""

import codecs
import lzma
import pathlib
import re

from mmlm.data.sources.source import SplitRequest
from mmlm.utils.errors import UserError

DOCUMENTS = ('file', 'paragraph', 'line')
SEPARATORS = {'line': r'\n', 'paragraph': r'\n\s*\n'}
_SHARE = re.compile(r'(.*?)(?:\[(\d*)%?:(\d*)%?\])?', re.DOTALL)
Documents = list[tuple[str, str]]  # (name, text)


class PlainTexts:
  """The documents of a split as examples {'id', 'targets': (text,), 'text': text}, unchanged.

  Raises:
    UserError: with file and line: a missing file, bytes that are not UTF-8, no text.
  """

  identity = ''

  def __init__(
    self,
    split: str,
    fields: dict[str, str],
  ):
    kind = fields.get('documents', 'file')
    if set(fields) - {'documents'} or kind not in DOCUMENTS:
      raise UserError(
        f"data.fields={fields}: plain text has {{'documents': one of {', '.join(DOCUMENTS)}}}."
      )
    match = _SHARE.fullmatch(split)
    assert match is not None
    path, low, high = match.groups()
    documents = []
    for file in _text_files(pathlib.Path(path)):
      for suffix, text in _documents(read_text(file), kind):
        if text.strip():
          documents.append((f'{file}{suffix}', text))
    self.texts = _share(documents, int(low or 0), int(high or 100), split)
    if not self.texts:
      raise UserError(f'{split}: no text in it.')

  def __len__(self) -> int:
    return len(self.texts)

  def __getitem__(self, i: int) -> dict:
    name, text = self.texts[i]
    return {'id': name, 'targets': (text,), 'text': text}


def open_plain_texts(request: SplitRequest) -> PlainTexts:
  """Opens a split of plain text."""
  return PlainTexts(request.split, request.fields)


def read_packed(path: str | pathlib.Path, about: str) -> bytes:
  """Returns a file, unpacked if its name ends with .xz, without a byte order mark.

  Args:
    about: ends the message about a file that cannot be read.
  """
  try:
    data = pathlib.Path(path).read_bytes()
    if str(path).endswith('.xz'):
      data = lzma.decompress(data)
  except OSError as error:
    raise UserError(f'{path}: {error.strerror}.\n{about}') from None
  except lzma.LZMAError as error:
    raise UserError(f'{path}: cannot be unpacked ({error}).') from None
  return data.removeprefix(codecs.BOM_UTF8)


def read_text(path: str | pathlib.Path) -> str:
  """Returns a file in UTF-8 (also packed by xz); a UserError names the line that is none."""
  assert __doc__
  data = read_packed(path, __doc__)
  try:
    return data.decode('utf-8')
  except UnicodeDecodeError as error:
    line = data.count(b'\n', 0, error.start) + 1
    column = error.start - data.rfind(b'\n', 0, error.start)
    raise UserError(
      f'{path}, line {line}: byte {column} is no UTF-8 ({error.reason}). '
      'Convert the file first (iconv -t utf-8).'
    ) from None


def _text_files(path: pathlib.Path) -> list[pathlib.Path]:
  if not path.is_dir():
    return [path]
  files = sorted([*path.rglob('*.txt'), *path.rglob('*.txt.xz')])
  if not files:
    raise UserError(f'{path}: no *.txt in this folder.')
  return files


def _documents(text: str, kind: str) -> Documents:
  """Returns [(what follows the name of the file, text)] of a file."""
  if kind == 'file':
    return [('', text)]
  documents = []
  for number, part in enumerate(re.split(SEPARATORS[kind], text), 1):
    documents.append((f', {kind} {number}', part.removesuffix('\r')))
  return documents


def _share(
  documents: Documents,
  low: int,
  high: int,
  split: str,
) -> Documents:
  """Returns from `low` to `high` percent of the documents, or of the characters of the only one."""
  if not 0 <= low < high <= 100:
    raise UserError(
      f'{split}: expected two percentages such as [:90%] or [90%:], the first below the second.'
    )
  if len(documents) != 1 or (low, high) == (0, 100):
    return documents[_percentages(len(documents), low, high)]
  ((name, text),) = documents
  part = text[_percentages(len(text), low, high)]
  return [(name, part)] if part else []


def _percentages(
  length: int,
  low: int,
  high: int,
) -> slice:
  return slice(length * low // 100, length * high // 100)
