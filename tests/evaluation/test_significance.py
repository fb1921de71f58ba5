import math

import numpy as np
import pytest

from mmlm.evaluation.significance import bootstrap_interval, mean_and_spread


def mean(sums):
  return sums[..., 0] / sums[..., 1]


def statistics(values):
  return np.stack([values, np.ones(len(values))], -1)


def test_the_interval_of_a_mean_is_near_the_normal_one():
  values = np.random.default_rng(1).normal(5, 2, 2000)
  value, low, high = bootstrap_interval(statistics(values), mean, samples=2000)
  half = 1.96 * values.std() / math.sqrt(2000)
  assert value == pytest.approx(values.mean())
  assert [low, high] == pytest.approx([value - half, value + half], abs=0.1 * half)


def test_one_seed_gives_one_interval():
  values = statistics(np.arange(50.0))
  assert bootstrap_interval(values, mean, seed=3) == bootstrap_interval(values, mean, seed=3)
  assert bootstrap_interval(values, mean, seed=3) != bootstrap_interval(values, mean, seed=4)


def test_equal_examples_leave_no_doubt():
  assert bootstrap_interval(statistics(np.full(20, 0.25)), mean) == (0.25, 0.25, 0.25)


def test_blocks_of_samples_change_nothing(monkeypatch):
  values = statistics(np.arange(50.0))
  whole = bootstrap_interval(values, mean)
  monkeypatch.setattr('mmlm.evaluation.significance._BLOCK_ELEMENTS', 50 * 7)
  assert bootstrap_interval(values, mean) == pytest.approx(whole)


def test_every_resample_has_as_many_examples():
  assert bootstrap_interval(np.ones([30, 1]), lambda sums: sums[..., 0]) == (30, 30, 30)


def test_no_examples_is_an_error():
  with pytest.raises(ValueError, match='no examples'):
    bootstrap_interval(np.zeros([0, 2]), mean)


def test_mean_and_spread_by_hand():
  # sd 1, 3 values: Student's t with 2 degrees of freedom is 4.3027 at 97.5 %.
  spread = mean_and_spread([1, 2, 3])
  half = 4.302652729911275 / math.sqrt(3)
  assert (spread['mean'], spread['sd'], spread['n']) == (2, 1, 3)
  assert [spread['low'], spread['high']] == pytest.approx([2 - half, 2 + half])


def test_one_value_has_no_spread():
  assert mean_and_spread([7.5]) == {'mean': 7.5, 'sd': None, 'n': 1, 'low': None, 'high': None}
