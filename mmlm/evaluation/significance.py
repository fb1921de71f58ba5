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
  if not len(statistics):
    raise ValueError('no examples to take an interval over')
  low, high = np.percentile(_resampled(statistics, value_fn, samples, seed), [2.5, 97.5])
  return float(value_fn(statistics.sum(0))), float(low), float(high)


def _resampled(statistics, value_fn, samples, seed) -> np.ndarray:
  """[samples, ...] values of as many draws of examples with replacement."""
  count = len(statistics)
  generator = np.random.default_rng(seed)
  block = max(1, _BLOCK_ELEMENTS // count)
  values = []
  for start in range(0, samples, block):
    weights = generator.multinomial(
      count, np.full(count, 1 / count), size=min(block, samples - start)
    )
    values.append(value_fn(weights @ statistics))
  return np.concatenate(values)


def paired_bootstrap(first, second, value_fn, samples: int = 1000, seed: int = 0) -> dict:
  """Is `first` different from `second` on the same examples (Koehn 2004)? Both [N, K], drawn together.

  Returns {'value', 'low', 'high'} of the first with its 95 % interval, 'difference' (first - second), its 'difference_interval'
  (95 %) and two-sided 'p': how often
  a resampled difference, less the mean of all, is at least as large as the observed one in either direction. (sacrebleu's paired
  bootstrap counts one direction, its randomisation test both.)
  """
  if len(first) != len(second):
    raise ValueError(f'{len(first)} examples against {len(second)}')
  both = np.concatenate([first, second], 1)
  width = np.shape(first)[1]

  def pair(sums):
    return np.stack(
      [value_fn(sums[..., :width]), value_fn(sums[..., width:])],
      -1,
    )

  values = _resampled(both, pair, samples, seed)
  value, other = (
    float(value_fn(np.sum(part, 0)))
    for part in (np.asarray(first, float), np.asarray(second, float))
  )
  low, high = np.percentile(values[:, 0], [2.5, 97.5])
  drawn = values[:, 0] - values[:, 1]
  interval = [float(bound) for bound in np.percentile(drawn, [2.5, 97.5])]
  extreme = np.abs(drawn - drawn.mean()) >= abs(value - other)
  return {
    'value': value,
    'low': float(low),
    'high': float(high),
    'difference': value - other,
    'difference_interval': interval,
    'p': float((extreme.sum() + 1) / (samples + 1)),
  }


def mean_and_spread(values) -> dict:
  """{'mean', 'sd', 'n', 'low', 'high'} over seeds; sd divides by n - 1, the interval is 95 %, Student's t.

  One value has no spread: sd, low and high are None.
  """
  values = np.asarray(values, np.float64)
  count = len(values)
  mean = float(values.mean())
  if count < 2:
    return {'mean': mean, 'sd': None, 'n': count, 'low': None, 'high': None}
  half = float(stats.t.ppf(0.975, count - 1) * stats.sem(values))
  return {
    'mean': mean,
    'sd': float(values.std(ddof=1)),
    'n': count,
    'low': mean - half,
    'high': mean + half,
  }
