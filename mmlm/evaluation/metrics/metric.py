"""What a metric is: two functions, so that resampling and comparison never count an n-gram again.

Axes: N examples, K sufficient statistics.
"""

import dataclasses
from collections.abc import Callable

import numpy as np


def mean_value(sums: np.ndarray) -> np.ndarray:
  """Sums of scores and counts [..., 2] -> means [...]."""
  return sums[..., 0] / sums[..., 1]


@dataclasses.dataclass(frozen=True)
class Metric:
  """`statistics(hypotheses, references)` -> [N, K]; `value` of their sums over examples [..., K] -> [...].

  `view` says what the hypotheses and the lists of references are: 'caption' (tokens as coco-caption counts them), 'words'
  (Moses' words in lower case, joined by spaces), 'surface' (texts as a person reads them), 'label' (names of classes),
  'confidence' (pairs of such a name and its probability), 'value' (numbers), or 'nats' (whole rows, of a language model: both the same).
  """

  definition: str
  statistics: Callable
  value: Callable = mean_value
  view: str = 'caption'
