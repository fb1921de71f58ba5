"""What a compiled program sends between devices, read from its HLO: kinds and bytes, loops counted as often as they run."""

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
WIDTHS = {
  'pred': 8,
  's4': 4,
  'u4': 4,
  'bf16': 16,
  'c64': 64,
  'c128': 128,
}  # bits, of names that do not end with them
_SHAPE = re.compile(r'\b([a-z]+\d*\w*)\[([\d,]*)\]')
_COMPUTATION = re.compile(r'^(?:ENTRY )?%?([\w.\-]+) .*\{$')
_CALLED = re.compile(
  r'(?:calls|to_apply|body|branch_computations|true_computation|false_computation)=\{?((?:%?[\w.\-]+(?:, )?)+)\}?'
)
_TRIPS = re.compile(r'known_trip_count[^}]*?"?n"?[^\d]*(\d+)')


class Sent(NamedTuple):
  """Of one kind of collective on one device in one call of the program."""

  times: int
  bytes: int  # of what it gives


def collectives(hlo: str) -> dict[str, Sent]:
  """{kind: Sent} of a program's text (`compiled.as_text()`); the body of a loop whose length XLA does not know counts once."""
  lines, entry = _computations(hlo)
  total = collections.defaultdict(lambda: [0, 0])

  def visit(name, times):
    for line in lines.get(name, ()):
      operation = re.search(rf'= (.*?) ({"|".join(KINDS)})(?:-start)?\(', line)
      if operation:
        total[operation[2]][0] += times
        total[operation[2]][1] += times * _bytes(operation[1], '-start(' in line)
      if ' while(' in line:
        inside = re.search(_TRIPS, line)
      else:
        inside = None
      for called in re.findall(_CALLED, line):
        for each in called.replace('%', '').split(', '):
          visit(each, times * int(inside[1] if inside else 1))

  visit(entry, 1)
  return {kind: Sent(*total[kind]) for kind in KINDS if kind in total}


def _computations(hlo: str) -> tuple[dict, str]:
  """{name of a computation: its lines}, and the name of the one that is called first."""
  found = {}
  name = ''
  entry = ''
  for line in hlo.splitlines():
    if line and not line.startswith(' ') and (match := re.match(_COMPUTATION, line)):
      name = match[1]
      found[name] = []
      if line.startswith('ENTRY'):
        entry = name
      else:
        entry = entry
    elif name:
      found[name].append(line)
  return found, entry


def _bytes(shapes: str, started: bool) -> int:
  """Of a shape such as 'f32[16,32]{1,0}' or a tuple of them; what an asynchronous start gives names its inputs too."""
  sizes = []
  for kind, dimensions in re.findall(_SHAPE, shapes):
    bits = WIDTHS.get(kind) or int(re.search(r'\d+', kind)[0])
    count = 1
    for size in filter(None, dimensions.split(',')):
      count *= int(size)
    sizes.append(count * bits // 8)
  if started and len(sizes) > 1:
    return max(sizes)
  return sum(sizes)
