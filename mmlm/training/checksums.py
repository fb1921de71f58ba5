"""Checksums of a checkpoint: CRC-32 of every file of its items.

They are computed from the files on disk, by the thread that writes, just before a step gets its
name. A step without them was written by an older version, and is read unchecked.
"""

import json
import pathlib
import zlib
from collections.abc import Collection

from orbax.checkpoint.path import atomicity

FILE = 'checksums.json'
CHUNK = 1 << 22  # bytes read at once


def crc(path: str | pathlib.Path) -> int:
  """Returns the CRC-32 of a file."""
  value = 0
  with open(path, 'rb') as file:
    while chunk := file.read(CHUNK):
      value = zlib.crc32(chunk, value)
  return value


def write_checksums(folder: str | pathlib.Path) -> None:
  """Writes checksums.json of the items in a folder; files beside the items are orbax's notes."""
  folder = pathlib.Path(folder)
  files = {}
  for path in sorted(folder.glob('*/**/*')):
    if path.is_file():
      files[str(path.relative_to(folder))] = crc(path)
  (folder / FILE).write_text(json.dumps({'files': files, 'own': _crc_of_list(files)}))


def damage(folder: str | pathlib.Path, items: Collection[str]) -> str:
  """Describes damage to the files of some items of a step; '' if there is none, or no checksums."""
  folder = pathlib.Path(folder)
  if not (folder / FILE).exists():
    return ''
  files = _read_checksums(folder / FILE)
  if files is None:
    return f'{FILE} is damaged'
  for name, checksum in files.items():
    if name.split('/')[0] not in items:
      continue
    path = folder / name
    if not path.is_file():
      return f'{name} is missing'
    if crc(path) != checksum:
      return f'{name} has other bytes than were written (checksum)'
  return ''


def _read_checksums(path: pathlib.Path) -> dict[str, int] | None:
  """Returns {file: checksum}; None if the list itself is damaged."""
  try:
    content = json.loads(path.read_bytes())
    files = content['files']
    if content['own'] == _crc_of_list(files):
      return files
  except (ValueError, KeyError, TypeError):
    pass
  return None


def _crc_of_list(files: dict[str, int]) -> int:
  return zlib.crc32(json.dumps(files).encode())


class SummedPath(atomicity.AtomicRenameTemporaryPath):
  """The folder in which orbax writes a step, or an item of one, until it is complete."""

  async def finalize(self) -> None:
    if self.get_final().name.isdigit():
      write_checksums(str(self.get()))
    await super().finalize()
