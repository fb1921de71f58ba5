"""The definition of a metric.

Two functions, so that resampling and comparison never count an n-gram again.

Axes: N examples, K sufficient statistics.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Rows = list[dict]  # of a predictions file
Texts = list[str]
References = list[Texts]  # of each example one or more
Pair = tuple[list, list]  # hypotheses and references

# (hypotheses, references) of N examples -> statistics [N, K]
Statistics = Callable[[list, list], NDArray]
# Sums of statistics over examples [..., K] -> values [...]
Value = Callable[[NDArray], NDArray]
# (predictions, language) -> (hypotheses, references): what `Statistics` reads, see views.py
View = Callable[[Rows, str], Pair]


class Unavailable(Exception):
  """This metric cannot be computed from these predictions or on this machine; the text says why."""


def mean_statistics(scores) -> NDArray:
  """Returns the scores of N examples and a count of 1 each, [N, 2], for `mean_value`."""
  return np.stack([np.asarray(scores, np.float64), np.ones(len(scores))], -1)


def mean_value(sums: NDArray) -> NDArray:
  """Returns means [...] of sums of scores and counts [..., 2]."""
  return sums[..., 0] / sums[..., 1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metric:
  """One metric; METRICS in mmlm/evaluation/metrics/__init__.py gives it its name."""

  definition: str  # how it is computed, written beside every measured number
  higher_is_better: bool
  view: View  # the form of the predictions that `statistics` reads
  statistics: Statistics
  value: Value = mean_value
