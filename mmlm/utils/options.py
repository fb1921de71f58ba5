"""Keys of configs as fields of dataclasses: a default with its comment, limits and properties.

The schema of configs (mmlm/config/schema.py) and the parts that configs choose by name (encoders,
fusions, heads) declare their keys by `option`; `options_of` reads them back.
"""

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from mmlm.utils.choices import one_of
from mmlm.utils.errors import UserError


class Limits(NamedTuple):
  """Numbers that a key may have: `at_least` and more, and less than `below` where it is set."""

  at_least: float
  below: float | None = None

  def __str__(self) -> str:
    text = f'{self.at_least} or more'
    if self.below is None:
      return text
    return f'{text}, and less than {self.below}'

  def check(self, key: str, value: float) -> None:
    """Raises UserError if `value`, that of `key`, is outside."""
    too_low = value < self.at_least
    too_high = self.below is not None and value >= self.below
    if too_low or too_high:
      raise UserError(f'{key}={value}: expected {self}.')


POSITIVE = Limits(1)
FRACTION = Limits(0, below=1)


@dataclasses.dataclass(frozen=True)
class Option:
  """What a config may set: one key, or a group of keys."""

  default: Any = None
  comment: str = ''
  limits: Limits | None = None
  choices: tuple = ()  # () = any value of the default's type
  duration: bool = False  # '500 steps', '10 epochs', '90000 examples'
  share: bool = False  # a duration that may also be a share of the run, '5 %'
  resumable: bool = False  # may change when a run is continued
  # Trials that one program trains together (mmlm/sweeps/shapes.py) may differ in keys that are
  traced: bool = False  # numbers in the program; 0 or less switches off what they control
  schedule: bool = False  # of the learning rate and the length of the run
  outside_program: bool = False  # only decide when something is written, or when the run ends
  # Groups
  section: type | None = None  # a dataclass whose fields are the keys of the group
  parts: Mapping[str, type] | None = None  # classes by `name`, whose fields are the other keys
  part_of_each_key: bool = False  # the user's keys, a part for each
  may_be_empty: bool = False  # the `name` of the part may be ''
  free_keys: bool = False  # the user's keys, any values

  @property
  def is_group(self) -> bool:
    return self.section is not None or self.parts is not None or self.free_keys

  def check(self, key: str, value: Any) -> None:
    """Raises UserError if `value`, that of `key`, is outside the limits or none of the choices."""
    if self.limits:
      self.limits.check(key, value)
    if self.choices:
      one_of(key, value, self.choices)


def option(default: Any, comment: str = '', **properties: Any) -> Any:
  """Returns a field of a dataclass with this default; `properties` are the fields of `Option`."""
  metadata = {'option': Option(default, comment, **properties)}
  if isinstance(default, dict):
    return dataclasses.field(default_factory=lambda: copy.deepcopy(default), metadata=metadata)
  return dataclasses.field(default=default, metadata=metadata)


def section(cls: type, comment: str = '', **properties: Any) -> Any:
  """Returns a field that holds a group of keys: the fields of the dataclass `cls`."""
  metadata = {'option': Option(None, comment, section=cls, **properties)}
  return dataclasses.field(default_factory=cls, metadata=metadata)


def options_of(cls: type) -> dict[str, Option]:
  """Returns {name: option} of the fields of a dataclass that have a default."""
  options = {}
  for field in dataclasses.fields(cls):
    declared = field.metadata.get('option')
    if declared is not None:
      options[field.name] = declared
    elif field.default is not dataclasses.MISSING:
      options[field.name] = Option(field.default)
  return options
