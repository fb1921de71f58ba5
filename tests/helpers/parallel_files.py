"""Parallel texts as files, correct and broken."""

import pathlib
from collections.abc import Iterable

FIELDS = {'text': 'en', 'targets': 'de'}
GOOD = {
  'my.en': b'a dog\nthe "cat"\n',
  'my.de': 'ein Hund\nDöner'.encode(),
  'my.tsv': 'de\tid\ten\nein Hund\t1\ta dog\nDöner\t2\tthe "cat"\n'.encode(),
}
# (split, file, its bytes or None without it, message)
BAD_PARALLEL = [
  ('my', 'my.de', b'ein Hund\n', '/my.en has 2 lines, .*/my.de has 1'),
  ('my', 'my.de', b'ein Hund\n \t\n', '/my.de, line 2: empty'),
  ('my', 'my.en', b'\nthe cat\n', '/my.en, line 1: empty'),
  ('my', 'my.de', 'ein Hund\nDöner'.encode('latin-1'), '/my.de, line 2: byte 2 is no UTF-8'),
  ('my', 'my.en', None, '(?s)/my.en: No such file.*line by line'),
  ('my.tsv', 'my.tsv', None, '(?s)/my.tsv: No such file.*table with a header'),
  (
    'my.tsv',
    'my.tsv',
    b'de\tid\tenglish\na\t1\tb\n',
    "/my.tsv, line 1: no column 'en'; there are: de, id, english",
  ),
  ('my.tsv', 'my.tsv', b'de\ten\na\tb\na\tb\tc\n', '/my.tsv, line 3: 3 columns instead of 2'),
  ('my.tsv', 'my.tsv', b'de\ten\na\n', '/my.tsv, line 2: 1 columns instead of 2'),
  ('my.tsv', 'my.tsv', b'de\ten\na\tb\na\t\n', '/my.tsv, line 3: empty'),
  ('my.tsv', 'my.tsv', b'de\ten\na\tb\n\xff\tb\n', '/my.tsv, line 3: byte 1 is no UTF-8'),
  ('my.tsv', 'my.tsv', b'', "/my.tsv, line 1: no column 'en'"),
  ('my.tsv', 'my.tsv', b'de\ten\n', '/my.tsv: no line'),
]


def write_parallel(folder: pathlib.Path, changes: Iterable[tuple[str, bytes | None]] = ()) -> None:
  """Writes correct parallel texts with some files changed or removed."""
  for name, content in (GOOD | dict(changes)).items():
    (folder / name).unlink(missing_ok=True)
    if content is not None:
      (folder / name).write_bytes(content)
