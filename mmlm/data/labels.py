"""Labels of examples as heads read them: the index of a class, or a number within a range.

`each`: an example has a label for each of its parts.
"""

import math
from collections.abc import Iterable
from typing import Any

from mmlm.utils.choices import nearest
from mmlm.utils.errors import UserError


class Classes:
  """Names of classes <-> their indices."""

  def __init__(
    self,
    names: Iterable[Any],
    each: bool = False,
  ):
    self.names = tuple(map(str, names))
    if len(self.names) < 2 or len(set(self.names)) < len(self.names):
      raise UserError(f'model.head.classes={names}: expected two or more names, no name twice.')
    self.each = each

  def encode(
    self,
    label: Any,
    example: str,
  ) -> int:
    """Returns the index of a label; an unknown one is an error that names the example."""
    name = str(label)
    if name not in self.names:
      raise UserError(
        f'the label {name!r} of {example} is not among model.head.classes={self.names}. '
        f'Nearest: {nearest(name, self.names)!r}.'
      )
    return self.names.index(name)

  def check_learnable(
    self,
    labels: list[list[int]],
    split: str,
  ) -> None:
    """Raises a UserError for a class without a training example, which is never predicted."""
    present = set()
    for of_example in labels:
      present.update(of_example)
    missing = [name for i, name in enumerate(self.names) if i not in present]
    if missing:
      raise UserError(
        f'{split}: no example of the class {missing[0]!r} of model.head.classes={self.names}: '
        'it cannot be learned. Add examples, or leave it out.'
      )


class Range:
  """Numbers from `low` to `high`."""

  def __init__(
    self,
    low: float,
    high: float,
    each: bool = False,
  ):
    self.low = low
    self.high = high
    self.each = each

  def encode(
    self,
    label: Any,
    example: str,
  ) -> float:
    """Returns a label as a number; any other one is an error that names the example."""
    try:
      value = float(label)
    except (TypeError, ValueError):
      value = math.nan
    if not self.low <= value <= self.high:
      raise UserError(
        f'the label {label!r} of {example} is not a number from {self.low:g} to {self.high:g} '
        '(model.head.low, high).'
      )
    return value
