"""Labels of examples, as heads want them: the number of a class, or a number within a range.

`each`: an example has a label for each of its parts.
"""

import math

from mmlm.utils.choices import nearest
from mmlm.utils.errors import UserError


class Classes:
  """Names of classes <-> their numbers."""

  def __init__(self, names: tuple, each: bool = False):
    if len(names) < 2 or len(set(names)) < len(names):
      raise UserError(f'model.head.classes={names}: expected two or more names, no name twice.')
    self.names = tuple(map(str, names))
    self.each = each

  def encode(self, label, example: str) -> int:
    name = str(label)
    if name not in self.names:
      near = nearest(name, self.names)
      raise UserError(
        f'the label {name!r} of {example} is not among model.head.classes={self.names}. Nearest: {near!r}.'
      )
    return self.names.index(name)

  def check_learnable(self, labels: list[list[int]], split: str) -> None:
    """UserError where a class has no example in the split that is trained on: it may occur in a test, and would never be said."""
    seen = {label for row in labels for label in row}
    if missing := [name for i, name in enumerate(self.names) if i not in seen]:
      raise UserError(
        f'{split}: no example of the class {missing[0]!r} of model.head.classes={self.names}: it cannot be learned. Add examples, or leave it out.'
      )


class Range:
  """Numbers from `low` to `high`."""

  def __init__(self, low: float, high: float, each: bool = False):
    self.low = low
    self.high = high
    self.each = each

  def encode(self, label, example: str) -> float:
    try:
      value = float(label)
    except (TypeError, ValueError):
      value = math.nan
    if not self.low <= value <= self.high:
      raise UserError(
        f'the label {label!r} of {example} is not a number from {self.low:g} to {self.high:g} (model.head.low, high).'
      )
    return value
