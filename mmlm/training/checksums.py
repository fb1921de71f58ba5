"""Checksums of what a checkpoint is made of: CRC-32 of every file of its items, so of every byte of every array.

They are computed from what lies on disk, by the thread that writes, just before a step gets its name. A step without
them is older than they are, and is read unchecked.
"""

import json
import pathlib
import zlib

from orbax.checkpoint.path import atomicity

FILE = 'checksums.json'
CHUNK = 1 << 22  # bytes read at once


def crc(path) -> int:
  """CRC-32 of a file."""
  value = 0
  with open(path, 'rb') as file:
    while chunk := file.read(CHUNK):
      value = zlib.crc32(chunk, value)
  return value


def write_checksums(folder) -> None:
  """Writes `folder`/checksums.json over the files of the items in it; the files beside the items are the library's own notes."""
  folder = pathlib.Path(folder)
  files = {}
  for path in sorted(folder.glob('*/**/*')):
    if path.is_file():
      files[str(path.relative_to(folder))] = crc(path)
  (folder / FILE).write_text(json.dumps({'files': files, 'own': _own(files)}))


def damage(folder, items) -> str:
  """What is wrong with the files of some items of a step, '' when nothing is, or nothing is known."""
  path = pathlib.Path(folder) / FILE
  if not path.exists():
    return ''
  try:
    written = json.loads(path.read_bytes())
    files = written['files']
    if written['own'] != _own(files):
      return f'{FILE} is damaged'
  except (ValueError, KeyError, TypeError):
    return f'{FILE} is damaged'
  for name, wanted in files.items():
    if name.split('/')[0] in items:
      file = pathlib.Path(folder) / name
      if not file.is_file():
        return f'{name} is missing'
      if crc(file) != wanted:
        return f'{name} has other bytes than were written (checksum)'
  return ''


def _own(files: dict) -> int:
  return zlib.crc32(json.dumps(files).encode())


class SummedPath(atomicity.AtomicRenameTemporaryPath):
  """The folder in which orbax writes a step, or an item of one, until it is whole."""

  async def finalize(self):
    if self.get_final().name.isdigit():
      write_checksums(self.get())
    await super().finalize()
