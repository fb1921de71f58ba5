"""Communication of a compiled program, read from its HLO: kinds and bytes of collectives."""

import collections
import re
from typing import NamedTuple

KINDS = (
  'all-reduce',
  'all-gather',
  'reduce-scatter',
  'all-to-all',
  'collective-permute',
  'collective-broadcast',
)
# Bits of the types whose names do not end with them.
WIDTHS = {'pred': 8, 's4': 4, 'u4': 4, 'bf16': 16, 'c64': 64, 'c128': 128}
_SHAPE = re.compile(r'\b([a-z]+\d*\w*)\[([\d,]*)\]')
_COMPUTATION = re.compile(r'^(?:ENTRY )?%?([\w.\-]+) .*\{$')
_COLLECTIVE = re.compile(rf'= (.*?) ({"|".join(KINDS)})(?:-start)?\(')
_CALLED = re.compile(
  r'(?:calls|to_apply|body|branch_computations|true_computation|false_computation)'
  r'=\{?((?:%?[\w.\-]+(?:, )?)+)\}?'
)
_TRIPS = re.compile(r'known_trip_count[^}]*?"?n"?[^\d]*(\d+)')


class Sent(NamedTuple):
  """The collectives of one kind, on one device, in one call of the program."""

  times: int
  bytes: int  # of their results


def collectives(hlo: str) -> dict[str, Sent]:
  """Returns {kind: Sent} of a program's text (`compiled.as_text()`).

  Loops count as often as they run; one whose length XLA does not know counts once.
  """
  computations, entry = _computations(hlo)
  times = collections.Counter()
  sizes = collections.Counter()

  def visit(name: str, repeats: int) -> None:
    for line in computations.get(name, ()):
      collective = _COLLECTIVE.search(line)
      if collective:
        shapes, kind = collective.groups()
        times[kind] += repeats
        sizes[kind] += repeats * _bytes(shapes, '-start(' in line)
      trips = _trip_count(line)
      for called in _called(line):
        visit(called, repeats * trips)

  visit(entry, 1)
  return {kind: Sent(times[kind], sizes[kind]) for kind in KINDS if kind in times}


def _trip_count(line: str) -> int:
  if ' while(' not in line:
    return 1
  match = _TRIPS.search(line)
  if match is None:
    return 1
  return int(match[1])


def _called(line: str) -> list[str]:
  """Returns the names of the computations that an operation calls."""
  names = []
  for group in _CALLED.findall(line):
    names += group.replace('%', '').split(', ')
  return names


def _computations(hlo: str) -> tuple[dict[str, list[str]], str]:
  """Returns {name of a computation: its lines}, and the name of the entry computation."""
  computations = {}
  name = ''
  entry = ''
  for line in hlo.splitlines():
    match = None
    if line and not line.startswith(' '):
      match = _COMPUTATION.match(line)
    if match:
      name = match[1]
      computations[name] = []
      if line.startswith('ENTRY'):
        entry = name
    elif name:
      computations[name].append(line)
  return computations, entry


def _bytes(shapes: str, asynchronous: bool) -> int:
  """Returns the bytes of a shape such as 'f32[16,32]{1,0}' or of a tuple of them.

  The result of an asynchronous start also names its inputs.
  """
  sizes = []
  for kind, dimensions in _SHAPE.findall(shapes):
    bits = WIDTHS.get(kind) or int(re.findall(r'\d+', kind)[0])
    count = 1
    for size in filter(None, dimensions.split(',')):
      count *= int(size)
    sizes.append(count * bits // 8)
  if asynchronous and len(sizes) > 1:
    return max(sizes)
  return sum(sizes)
