"""Reader of CTranslate2's `model.bin`, which may lie in several parts, one after another.

All numbers are little-endian. The file is: u32 version; the name of its kind; u32 revision; u32
count of variables; for each its name, u8 rank, rank x u32 shape, u8 type, u32 bytes, the values;
u32 count of aliases, each two names. A name is a u16 length with the final NUL, then its bytes.
"""

import contextlib
import math
import pathlib
import struct
from typing import NamedTuple

import numpy as np

from mmlm.utils.errors import UserError

TYPES = ('<f4', '<i1', '<i2', '<i4', '<f2')
VERSIONS = range(2, 7)  # of the layout above


class Contents(NamedTuple):
  kind: str  # such as 'WhisperSpec'
  variables: dict[str, np.ndarray]  # in the types of the file
  aliases: dict[str, str]  # {other name: name of a variable}


class _Parts:
  """Reads several files as one; `place` names what is being read, for messages."""

  def __init__(self, files: list):
    self.files = files
    self.place = 'its first number'

  def fill(self, buffer: memoryview) -> None:
    """Reads as many bytes as the buffer has, from as many files as it takes."""
    while len(buffer):
      count = self.files[0].readinto(buffer) if self.files else 0
      if not self.files:
        raise ValueError(
          f'it ends within {self.place}, {len(buffer)} bytes before its end: a part is cut or '
          'missing'
        )
      if count == 0:
        self.files = self.files[1:]
      buffer = buffer[count:]

  def numbers(self, form: str) -> tuple:
    little_endian = '<' + form
    size = struct.calcsize(little_endian)
    data = bytearray(size)
    self.fill(memoryview(data))
    return struct.unpack(little_endian, data)

  def name(self) -> str:
    (length,) = self.numbers('H')
    data = bytearray(length)
    self.fill(memoryview(data))
    return data.decode('utf-8').removesuffix('\0')

  def variable(self) -> tuple[str, np.ndarray]:
    name = self.name()
    self.place = f'the variable {name!r}'
    (rank,) = self.numbers('B')
    shape = self.numbers(f'{rank}I')
    kind, size = self.numbers('BI')
    count = math.prod(shape)
    fits = kind < len(TYPES) and count * np.dtype(TYPES[kind]).itemsize == size
    if not fits:
      raise ValueError(
        f'{self.place} has the shape {shape}, type {kind} and {size} bytes, which do not fit'
      )
    values = np.empty(count, TYPES[kind])
    if size:
      self.fill(values.data.cast('B'))
    return name, values.reshape(shape)


def _read(parts: _Parts) -> Contents:
  (version,) = parts.numbers('I')
  if version not in VERSIONS:
    raise ValueError(f'it does not start as such a file does (version {version})')
  parts.place = 'its head'
  kind = parts.name()
  _, count = parts.numbers('II')
  variables = {}
  for _ in range(count):
    name, values = parts.variable()
    variables[name] = values
  parts.place = 'the aliases at its end'
  aliases = {}
  (number,) = parts.numbers('I')
  for _ in range(number):
    alias = parts.name()
    aliases[alias] = parts.name()
  return Contents(kind, variables, aliases)


def read_model(*paths: str | pathlib.Path) -> Contents:
  """Reads all variables of a file, or of its parts in their order; nothing is held twice.

  Raises:
    UserError: no such file, a truncated, damaged or foreign one.
  """
  try:
    with contextlib.ExitStack() as stack:
      return _read(_Parts([stack.enter_context(open(path, 'rb')) for path in paths]))
  except (OSError, ValueError, MemoryError) as error:  # ValueError: also a name that is no UTF-8
    names = ' + '.join(map(str, paths))
    raise UserError(f'cannot read {names} as a model.bin of CTranslate2: {error}.') from None
