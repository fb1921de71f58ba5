"""Search spaces as data: which keys a sweep sets, and to what.

`choices` and the ranges set one key; `product`, `zip` and `chain` join spaces. A file with a space
has a function `get_space()`, such as

    from mmlm.sweeps.spaces import choices, log_uniform, product

    def get_space():
      return product(
        log_uniform('optimizer.learning_rate', 1e-4, 1e-2, points=4),
        choices('model.dropout', 0.1, 0.3),
      )

A point of a space is {key of the config: value}. Parameters are how optuna names a point: {name of
a distribution: what was drawn from it}.
"""

import dataclasses
import math
import pathlib
import runpy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from optuna.trial import BaseTrial, FixedTrial

from mmlm.config import ROOT
from mmlm.utils.errors import UserError

Point = dict[str, Any]
Parameters = dict[str, Any]
SCALARS = (str, int, float, bool, type(None))  # optuna's journal takes these as categories


@runtime_checkable
class Space(Protocol):
  """A part of a space, or all of it."""

  def keys(self) -> list[str]:
    """Returns the keys of the config that it sets."""
    ...

  def suggest(self, trial: BaseTrial) -> Point:
    """Returns the point that a trial of optuna chooses."""
    ...

  def grid(self) -> list[Parameters]:
    """Returns the parameters of all points; UserError where a range has no number of points."""
    ...

  def examples(self) -> list[Point]:
    """Returns some points, among which are all choices and both ends of all ranges."""
    ...

  def under(self, prefix: str) -> 'Space':
    """Returns the same space with the names of its parameters behind `prefix`."""
    ...


@dataclass(frozen=True)
class Choices:
  """One of `values`, of any type that the key has."""

  key: str
  values: tuple
  prefix: str = ''

  @property
  def name(self) -> str:
    return f'{self.prefix}{self.key}'

  @property
  def categories(self) -> list:
    """The values as optuna takes them."""
    categories = []
    for value in self.values:
      is_scalar = isinstance(value, SCALARS)
      categories.append(value if is_scalar else repr(value))
    return categories

  def keys(self) -> list[str]:
    return [self.key]

  def suggest(self, trial: BaseTrial) -> Point:
    category = trial.suggest_categorical(self.name, self.categories)
    return {self.key: self.values[self.categories.index(category)]}

  def grid(self) -> list[Parameters]:
    return [{self.name: category} for category in self.categories]

  def examples(self) -> list[Point]:
    return [{self.key: value} for value in self.values]

  def under(self, prefix: str) -> 'Choices':
    return dataclasses.replace(self, prefix=prefix + self.prefix)


@dataclass(frozen=True)
class Range:
  """A number from `low` to `high`, both included; a grid has `points` of them, evenly spread."""

  key: str
  low: float
  high: float
  log: bool = False
  points: int = 0
  prefix: str = ''

  @property
  def name(self) -> str:
    return f'{self.prefix}{self.key}'

  @property
  def is_whole(self) -> bool:
    return isinstance(self.low, int) and isinstance(self.high, int)

  def keys(self) -> list[str]:
    return [self.key]

  def suggest(self, trial: BaseTrial) -> Point:
    suggest: Callable = trial.suggest_int if self.is_whole else trial.suggest_float
    value = suggest(self.name, self.low, self.high, log=self.log)
    return {self.key: value}

  def grid(self) -> list[Parameters]:
    if self.points < 1:
      raise UserError(
        f'{self.key}: a grid over a range needs to know how many: give it points=4, '
        'or choose --sampler random or tpe.'
      )
    values: Iterable[float] = self._spread()
    if self.is_whole:
      values = dict.fromkeys(map(round, values))  # each once
    return [{self.name: value} for value in values]

  def _spread(self) -> list[float]:
    """Returns `points` values; the first and the last are exact, which logarithms are not."""
    low = self.low
    high = self.high
    if self.log:
      low = math.log(low)
      high = math.log(high)
    values = [self.low]
    for i in range(1, self.points - 1):
      value = low + (high - low) * i / (self.points - 1)
      if self.log:
        value = math.exp(value)
      values.append(value)
    values.append(self.high)
    return values[: self.points]

  def examples(self) -> list[Point]:
    return [{self.key: self.low}, {self.key: self.high}]

  def under(self, prefix: str) -> 'Range':
    return dataclasses.replace(self, prefix=prefix + self.prefix)


@dataclass(frozen=True)
class Product:
  """All combinations of the points of its parts."""

  parts: tuple

  def keys(self) -> list[str]:
    return _keys_of(self.parts)

  def suggest(self, trial: BaseTrial) -> Point:
    point = {}
    for part in self.parts:
      point |= part.suggest(trial)
    return point

  def grid(self) -> list[Parameters]:
    grid: list[Parameters] = [{}]
    for part in self.parts:
      grid = _combinations(grid, part.grid())
    return grid

  def examples(self) -> list[Point]:
    first = {}
    for part in self.parts:
      first |= part.examples()[0]
    examples = []
    for part in self.parts:
      for point in part.examples():
        examples.append(first | point)
    return examples

  def under(self, prefix: str) -> 'Product':
    parts = [part.under(prefix) for part in self.parts]
    return Product(tuple(parts))


def _combinations(left: list[dict], right: list[dict]) -> list[dict]:
  """Returns all pairs, joined; the right one varies fastest."""
  pairs = []
  for of_left in left:
    for of_right in right:
      pairs.append(of_left | of_right)
  return pairs


@dataclass(frozen=True)
class Zip:
  """Choices that go together: the first of each, or the second of each."""

  parts: tuple[Choices, ...]
  prefix: str = ''

  @property
  def name(self) -> str:
    return self.prefix + '+'.join(self.keys())

  @property
  def indices(self) -> list[int]:
    return [*range(len(self.parts[0].values))]

  def keys(self) -> list[str]:
    return [part.key for part in self.parts]

  def _at(self, i: int) -> Point:
    return {part.key: part.values[i] for part in self.parts}

  def suggest(self, trial: BaseTrial) -> Point:
    return self._at(trial.suggest_categorical(self.name, self.indices))

  def grid(self) -> list[Parameters]:
    return [{self.name: i} for i in self.indices]

  def examples(self) -> list[Point]:
    return [self._at(i) for i in self.indices]

  def under(self, prefix: str) -> 'Zip':
    return dataclasses.replace(self, prefix=prefix + self.prefix)


@dataclass(frozen=True)
class Chain:
  """The points of one part, then those of the next."""

  parts: tuple
  prefix: str = ''

  @property
  def name(self) -> str:
    return f'{self.prefix}part'

  @property
  def indices(self) -> list[int]:
    return [*range(len(self.parts))]

  def _part(self, i: int) -> Space:
    return self.parts[i].under(f'{self.prefix}{i}:')

  def keys(self) -> list[str]:
    return list(dict.fromkeys(_keys_of(self.parts)))

  def suggest(self, trial: BaseTrial) -> Point:
    part = self._part(trial.suggest_categorical(self.name, self.indices))
    return part.suggest(trial)

  def grid(self) -> list[Parameters]:
    grid = []
    for i in self.indices:
      grid += _combinations([{self.name: i}], self._part(i).grid())
    return grid

  def examples(self) -> list[Point]:
    examples = []
    for part in self.parts:
      examples += part.examples()
    return examples

  def under(self, prefix: str) -> 'Chain':
    return dataclasses.replace(self, prefix=prefix + self.prefix)


def choices(key: str, *values: Any) -> Choices:
  """Returns the space of these values of a key."""
  if not values:
    raise UserError(f'{key}: choices need values.')
  if len(set(map(repr, values))) < len(values):
    raise UserError(f'{key}: a value stands twice among {", ".join(map(repr, values))}.')
  return Choices(key, values)


def uniform(key: str, low: float, high: float, points: int = 0) -> Range:
  """Returns the range of real numbers from `low` to `high`."""
  return _range(key, float(low), float(high), False, points)


def log_uniform(key: str, low: float, high: float, points: int = 0) -> Range:
  """Returns the range from `low` to `high`, uniform in the logarithm."""
  return _range(key, float(low), float(high), True, points)


def integers(key: str, low: int, high: int, points: int = 0, log: bool = False) -> Range:
  """Returns the range of whole numbers from `low` to `high`."""
  if not (type(low) is int and type(high) is int):
    raise UserError(
      f'{key}: whole numbers go from a whole number to another one, not from {low} to {high}.'
    )
  return _range(key, low, high, log, points)


def _range(key: str, low: float, high: float, log: bool, points: int) -> Range:
  is_above_0 = low > 0 or not log
  if not (low < high and is_above_0):
    lowest = 'a number above 0' if log else 'a number'
    raise UserError(
      f'{key}: a range goes from {lowest} to a greater one, not from {low} to {high}.'
    )
  return Range(key, low, high, log, points)


def product(*parts: Space) -> Product:
  """Returns the space of all combinations of the points of its parts."""
  keys = _keys_of(parts)
  for key in keys:
    if keys.count(key) > 1:
      raise UserError(f'{key} stands in two parts of a product.')
  return Product(parts)


def zip(*parts: Choices) -> Zip:
  """Returns choices that go together, as many of each."""
  if not parts:
    raise UserError('zip needs parts.')
  for part in parts:
    if not isinstance(part, Choices):
      raise UserError(f'zip joins choices, not {type(part).__name__.lower()}.')
    if len(part.values) != len(parts[0].values):
      counts = [f'{part.key} has {len(part.values)} values' for part in parts]
      raise UserError(f'zip: {", ".join(counts)}: expected as many of each.')
  return Zip(parts)


def chain(*parts: Space) -> Chain:
  """Returns the space of the points of all parts, one part after the other."""
  if not parts:
    raise UserError('chain needs parts.')
  return Chain(parts)


def _keys_of(parts: Iterable[Space]) -> list[str]:
  keys = []
  for part in parts:
    keys += part.keys()
  return keys


def load_space(path: str, config_path: str) -> Space:
  """Returns the space of a file; without `path` of the one beside a config, `<name>_space.py`.

  Raises:
    UserError: there is no such file, or what it defines is not a space.
  """
  config = pathlib.Path(config_path.partition(':')[0])
  file = pathlib.Path(path or config.with_name(f'{config.stem}_space.py'))
  if not file.is_file():
    file = ROOT / file
  if not file.is_file():
    raise UserError(_no_space(path, config))
  try:
    space = runpy.run_path(str(file))['get_space']()
  except UserError as error:
    raise UserError(f'{file}: {error}') from None
  except Exception as error:  # whatever a user's file raises
    raise UserError(f'{file}: {type(error).__name__}: {error}') from None
  if not isinstance(space, Space):
    raise UserError(
      f'{file}: get_space() returns {space!r}, not a space such as choices(...) or product(...).'
    )
  return space


def _no_space(path: str, config: pathlib.Path) -> str:
  if path:
    return f'no file {path} with a space.'
  file = config.with_name(f'{config.stem}_space.py')
  return (
    f'no file {file} with a space: write it, with a function get_space(), '
    'or name another by --space.'
  )


def as_text(value: Any) -> str:
  """Returns a value as the command line takes it."""
  if isinstance(value, str):
    return value
  return repr(value)


def point_of(space: Space, parameters: Parameters) -> Point:
  """Returns the point that a trial of optuna with these parameters chooses."""
  return space.suggest(FixedTrial(parameters))
