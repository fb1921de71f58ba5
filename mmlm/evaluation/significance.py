"""How sure a number is: bootstrap intervals over examples, and mean and spread over seeds."""

import numpy as np
from scipy import stats

_BLOCK_ELEMENTS = 1 << 22  # resampling weights held in memory at once


def bootstrap_interval(statistics, value_fn, samples: int = 1000, seed: int = 0) -> tuple:
  """(value, low, high): a metric and its 95 % interval over examples, by percentiles (Efron 1979).

  statistics: [N, K] sufficient statistics, a row an example. value_fn: sums of rows [..., K] -> values [...].
  An example drawn w times is a weight of w, so a resampled value costs one row of a matrix product.
  """
  statistics = np.asarray(statistics, np.float64)
  count = len(statistics)
  if count == 0:
    raise ValueError('no examples to take an interval over')
  value = float(value_fn(statistics.sum(0)))
  generator, block = np.random.default_rng(seed), max(1, _BLOCK_ELEMENTS // count)
  values = []
  for start in range(0, samples, block):
    weights = generator.multinomial(count, np.full(count, 1 / count), size=min(block, samples - start))
    values.append(value_fn(weights @ statistics))
  low, high = np.percentile(np.concatenate(values), [2.5, 97.5])
  return value, float(low), float(high)


def mean_and_spread(values) -> dict:
  """{'mean', 'sd', 'n', 'low', 'high'} over seeds; sd divides by n - 1, the interval is 95 %, Student's t.

  One value has no spread: sd, low and high are None.
  """
  values = np.asarray(values, np.float64)
  count, mean = len(values), float(values.mean())
  if count < 2:
    return {'mean': mean, 'sd': None, 'n': count, 'low': None, 'high': None}
  low, high = map(float, stats.t.interval(0.95, count - 1, mean, stats.sem(values)))
  return {'mean': mean, 'sd': float(values.std(ddof=1)), 'n': count, 'low': low, 'high': high}
