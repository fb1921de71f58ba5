"""How certain a score is: bootstrap intervals over examples, and mean and spread over seeds.

Axes: N examples, K sufficient statistics, S samples.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from mmlm.evaluation.metrics.metric import Value

_BLOCK_ELEMENTS = 1 << 22  # resampling weights held in memory at once
_INTERVAL = (2.5, 97.5)  # percentiles


def bootstrap_interval(
  statistics: NDArray,
  value: Value,
  samples: int = 1000,
  seed: int = 0,
) -> tuple[float, float, float]:
  """Returns (value, low, high): a metric and its 95 % interval by percentiles (Efron 1979).

  An example drawn w times has the weight w, so a resampled value costs a row of a matrix product.

  Args:
    statistics: [N, K], sufficient statistics.
    value: sums of statistics [..., K] -> values [...].
  """
  statistics = np.asarray(statistics, np.float64)
  if not len(statistics):
    raise ValueError('no examples to take an interval over')
  low, high = np.percentile(_resampled(statistics, value, samples, seed), _INTERVAL)
  return float(value(statistics.sum(0))), float(low), float(high)


def _resampled(
  statistics: NDArray,
  value: Value,
  samples: int,
  seed: int,
) -> NDArray:
  """Returns [S, ...], the values of as many draws of examples with replacement."""
  count = len(statistics)
  generator = np.random.default_rng(seed)
  uniform = np.full(count, 1 / count)
  block = max(1, _BLOCK_ELEMENTS // count)
  values = []
  for start in range(0, samples, block):
    size = min(block, samples - start)
    weights = generator.multinomial(count, uniform, size=size)
    values.append(value(weights @ statistics))
  return np.concatenate(values)


def paired_bootstrap(
  first: NDArray,
  second: NDArray,
  value: Value,
  samples: int = 1000,
  seed: int = 0,
) -> dict:
  """Compares two systems on the same examples, which are drawn together (Koehn 2004).

  (sacrebleu's paired bootstrap counts one direction, its randomisation test both.)

  Args:
    first, second: [N, K], their sufficient statistics.
    value: sums of statistics [..., K] -> values [...].

  Returns:
    {'value', 'low', 'high'} of the first with its 95 % interval, 'difference' (first - second),
    its 'difference_interval' (95 %) and two-sided 'p': how often a resampled difference, less the
    mean of all, is at least as large as the observed one in either direction.
  """
  if len(first) != len(second):
    raise ValueError(f'{len(first)} examples against {len(second)}')
  width = np.shape(first)[1]

  def pair(sums: NDArray) -> NDArray:
    return np.stack([value(sums[..., :width]), value(sums[..., width:])], -1)

  samples_of_both = _resampled(np.concatenate([first, second], 1), pair, samples, seed)  # [S, 2]
  of_first = _value_of(first, value)
  of_second = _value_of(second, value)
  low, high = np.percentile(samples_of_both[:, 0], _INTERVAL)
  differences = samples_of_both[:, 0] - samples_of_both[:, 1]
  interval = [float(bound) for bound in np.percentile(differences, _INTERVAL)]
  extreme = np.abs(differences - differences.mean()) >= abs(of_first - of_second)
  return {
    'value': of_first,
    'low': float(low),
    'high': float(high),
    'difference': of_first - of_second,
    'difference_interval': interval,
    'p': float((extreme.sum() + 1) / (samples + 1)),
  }


def _value_of(statistics: NDArray, value: Value) -> float:
  return float(value(np.sum(np.asarray(statistics, float), 0)))


def mean_and_spread(values: list[float]) -> dict:
  """Returns {'mean', 'sd', 'n', 'low', 'high'} over seeds.

  sd divides by n - 1, the interval is 95 %, Student's t. One value has no spread: sd, low and high
  are None.
  """
  array = np.asarray(values, np.float64)
  count = len(array)
  mean = float(array.mean())
  if count < 2:
    return {'mean': mean, 'sd': None, 'n': count, 'low': None, 'high': None}
  half = float(stats.t.ppf(0.975, count - 1) * stats.sem(array))
  return {
    'mean': mean,
    'sd': float(array.std(ddof=1)),
    'n': count,
    'low': mean - half,
    'high': mean + half,
  }
