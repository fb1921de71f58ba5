"""Spaces of configs as data: what a sweep may set, and to what.

A space is made of parts. `choices` and the ranges set one key; `product`, `zip` and `chain` join parts. A file with a space has a function
`get_space()`, such as

    from mmlm.sweeps.spaces import choices, log_uniform, product

    def get_space():
      return product(log_uniform('optimizer.learning_rate', 1e-4, 1e-2, points=4), choices('model.dropout', 0.1, 0.3))

A point of a space is {key of the config: value}. Every part has:

    keys()         what it sets
    suggest(trial) a point, chosen by a trial of optuna
    grid()         all of its points, each as what a trial of optuna is given to choose it; UserError where they have no end
    examples()     some points that hold every value of the choices and both ends of the ranges
"""

import itertools
import math
import pathlib
import runpy
from dataclasses import dataclass

from optuna.trial import FixedTrial

from mmlm.config import ROOT
from mmlm.utils.errors import UserError

SCALARS = (str, int, float, bool, type(None))


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
  def told(self) -> list:
    """The values as optuna takes them."""
    return [value if isinstance(value, SCALARS) else repr(value) for value in self.values]

  def keys(self) -> list[str]:
    return [self.key]

  def suggest(self, trial) -> dict:
    return {self.key: self.values[self.told.index(trial.suggest_categorical(self.name, self.told))]}

  def grid(self) -> list[dict]:
    return [{self.name: value} for value in self.told]

  def examples(self) -> list[dict]:
    return [{self.key: value} for value in self.values]

  def under(self, prefix: str) -> 'Choices':
    return Choices(self.key, self.values, prefix + self.prefix)


@dataclass(frozen=True)
class Range:
  """A number from `low` to `high`, both included; `points` of them, evenly spread, where a grid is asked for."""

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
  def whole(self) -> bool:
    return isinstance(self.low, int) and isinstance(self.high, int)

  def keys(self) -> list[str]:
    return [self.key]

  def suggest(self, trial) -> dict:
    if self.whole:
      suggest = trial.suggest_int
    else:
      suggest = trial.suggest_float
    return {self.key: suggest(self.name, self.low, self.high, log=self.log)}

  def grid(self) -> list[dict]:
    if self.points < 1:
      raise UserError(
        f'{self.key}: a grid over a range needs to know how many: give it points=4, or choose --sampler random or tpe.'
      )
    low, high = (
      (
        math.log(self.low),
        math.log(self.high),
      )
      if self.log
      else (self.low, self.high)
    )
    at = [
      low
      + (high - low)
      * i
      / max(
        self.points - 1,
        1,
      )
      for i in range(self.points)
    ]
    # The ends as they were given: logarithms round.
    values = [
      self.low,
      *(math.exp(value) if self.log else value for value in at[1:-1]),
      self.high,
    ][: self.points]
    result = []
    for value in dict.fromkeys(map(round, values)) if self.whole else values:
      result.append({self.name: value})
    return result

  def examples(self) -> list[dict]:
    return [{self.key: self.low}, {self.key: self.high}]

  def under(self, prefix: str) -> 'Range':
    return Range(self.key, self.low, self.high, self.log, self.points, prefix + self.prefix)


@dataclass(frozen=True)
class Product:
  """Every part by itself: all combinations."""

  parts: tuple

  def keys(self) -> list[str]:
    return [key for part in self.parts for key in part.keys()]  # noqa: SIM118 no dict

  def suggest(self, trial) -> dict:
    return _joined(part.suggest(trial) for part in self.parts)

  def grid(self) -> list[dict]:
    return [_joined(points) for points in itertools.product(*(part.grid() for part in self.parts))]

  def examples(self) -> list[dict]:
    lists = [part.examples() for part in self.parts]
    first = _joined(points[0] for points in lists)
    return [first | point for points in lists for point in points]

  def under(self, prefix: str) -> 'Product':
    return Product(tuple(part.under(prefix) for part in self.parts))


@dataclass(frozen=True)
class Zip:
  """Choices that go together: the first of each, or the second of each."""

  parts: tuple
  prefix: str = ''

  @property
  def name(self) -> str:
    return self.prefix + '+'.join(self.keys())

  def keys(self) -> list[str]:
    return [part.key for part in self.parts]

  def _at(self, i: int) -> dict:
    return {part.key: part.values[i] for part in self.parts}

  def suggest(self, trial) -> dict:
    return self._at(trial.suggest_categorical(self.name, [*range(len(self.parts[0].values))]))

  def grid(self) -> list[dict]:
    return [{self.name: i} for i in range(len(self.parts[0].values))]

  def examples(self) -> list[dict]:
    return [self._at(i) for i in range(len(self.parts[0].values))]

  def under(self, prefix: str) -> 'Zip':
    return Zip(self.parts, prefix + self.prefix)


@dataclass(frozen=True)
class Chain:
  """One part or another, one after the other."""

  parts: tuple
  prefix: str = ''

  @property
  def name(self) -> str:
    return f'{self.prefix}part'

  def _part(self, i: int):
    return self.parts[i].under(f'{self.prefix}{i}:')

  def keys(self) -> list[str]:
    return list(dict.fromkeys(key for part in self.parts for key in part.keys()))  # noqa: SIM118

  def suggest(self, trial) -> dict:
    return self._part(trial.suggest_categorical(self.name, [*range(len(self.parts))])).suggest(
      trial
    )

  def grid(self) -> list[dict]:
    result = []
    for i in range(len(self.parts)):
      for point in self._part(i).grid():
        result.append({self.name: i} | point)
    return result

  def examples(self) -> list[dict]:
    return [point for part in self.parts for point in part.examples()]

  def under(self, prefix: str) -> 'Chain':
    return Chain(self.parts, prefix + self.prefix)


def choices(key: str, *values) -> Choices:
  if not values:
    raise UserError(f'{key}: choices need values.')
  if len(set(map(repr, values))) < len(values):
    raise UserError(f'{key}: a value stands twice among {", ".join(map(repr, values))}.')
  return Choices(key, values)


def uniform(key: str, low: float, high: float, points: int = 0) -> Range:
  return _range(key, float(low), float(high), False, points)


def log_uniform(key: str, low: float, high: float, points: int = 0) -> Range:
  """Uniform in the logarithm."""
  return _range(key, float(low), float(high), True, points)


def integers(key: str, low: int, high: int, points: int = 0, log: bool = False) -> Range:
  """Whole numbers."""
  if not (type(low) is int and type(high) is int):
    raise UserError(
      f'{key}: whole numbers go from a whole number to another one, not from {low} to {high}.'
    )
  return _range(key, low, high, log, points)


def product(*parts) -> Product:
  twice = []
  for key, group in itertools.groupby(sorted(Product(parts).keys())):
    if len(list(group)) > 1:
      twice.append(key)
  if twice:
    raise UserError(f'{twice[0]} stands in two parts of a product.')
  return Product(parts)


def zip(*parts) -> Zip:
  if bad := [part for part in parts if not isinstance(part, Choices)]:
    raise UserError(f'zip joins choices, not {type(bad[0]).__name__.lower()}.')
  if len({len(part.values) for part in parts}) != 1:
    raise UserError(
      'zip: '
      + ', '.join(f'{part.key} has {len(part.values)} values' for part in parts)
      + ': expected as many of each.'
    )
  return Zip(parts)


def chain(*parts) -> Chain:
  if not parts:
    raise UserError('chain needs parts.')
  return Chain(parts)


def _range(key, low, high, log, points) -> Range:
  if not low < high or log and low <= 0:
    raise UserError(
      f'{key}: a range goes from a number{" above 0" if log else ""} to a greater one, not from {low} to {high}.'
    )
  return Range(key, low, high, log, points)


def _joined(points) -> dict:
  return {key: value for point in points for key, value in point.items()}


PARTS = (Choices, Range, Product, Zip, Chain)


def load_space(path: str, config_path: str):
  """The space of a file, or of the file beside a config: `<name>_space.py`."""
  config = pathlib.Path(config_path.partition(':')[0])
  file = pathlib.Path(path or config.with_name(f'{config.stem}_space.py'))
  found = next((place for place in (file, ROOT / file) if place.is_file()), None)
  if found is None:
    raise UserError(
      f'no file {file} with a space'
      + ('.' if path else ': write it, with a function get_space(), or name another by --space.')
    )
  try:
    space = runpy.run_path(str(found))['get_space']()
  except Exception as error:  # whatever a person's file raises
    if isinstance(error, UserError):
      kind = ''
    else:
      kind = f'{type(error).__name__}: '
    raise UserError(f'{file}: {kind}{error}') from None
  if not isinstance(space, PARTS):
    raise UserError(
      f'{file}: get_space() returns {space!r}, not a space such as choices(...) or product(...).'
    )
  return space


def as_text(value) -> str:
  """A value as the command line takes it."""
  if isinstance(value, str):
    return value
  return repr(value)


def point_of(space, parameters: dict) -> dict:
  """The point that a trial of optuna with these parameters chooses."""
  return space.suggest(FixedTrial(parameters))
