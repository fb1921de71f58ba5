"""What every transform declares. A transform reads one field of an example and replaces it."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

Example = dict[str, Any]
# options -> (slowest, fastest) tempo at which a sound is played; 1 = unchanged
TempoRange = Callable[..., tuple[float, float]]


@dataclasses.dataclass(frozen=True)
class Transform:
  """A transform of examples; a new one is a function and one line in a dict of transforms.

  Attributes:
    change: (value of the field, rng, options...) -> new value. Its annotations declare the options.
    tempo_range: how its options change the duration of a sound; None for transforms that keep it.
    field: the field of an example that it reads and replaces.
  """

  change: Callable[..., Any]
  tempo_range: TempoRange | None = None
  field: ClassVar[str]

  def __call__(self, example: Example, rng: np.random.Generator, **options: Any) -> Example:
    """Returns the transformed example; never changes the one that it gets."""
    raise NotImplementedError(f'{type(self).__name__}.__call__')


@dataclasses.dataclass(frozen=True)
class ConfiguredTransform:
  """A transform with its options, as a config names it."""

  transform: Transform
  options: dict[str, Any]

  def __call__(
    self,
    example: Example,
    rng: np.random.Generator,
  ) -> Example:
    """Returns the transformed example."""
    return self.transform(example, rng, **self.options)

  @property
  def tempo_range(self) -> tuple[float, float]:
    """The slowest and the fastest tempo at which a sound may be played."""
    if self.transform.tempo_range is None:
      return 1.0, 1.0
    return self.transform.tempo_range(**self.options)
