"""Searches by several scores at once: weight 0 is the plain search, sums are those of brute force,
n-gram tables are probabilities.

Axes: B batch, K rows an example, V vocabulary, H histories.
"""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_search import BOS, EOS, PAD, listed, log_prob, make_step, toy

from mmlm.decoding import ngram
from mmlm.decoding.ngram import begin_ngram, train_ngram
from mmlm.decoding.score_fusion import FusionOptions, Scorer, WeightedStep, combine
from mmlm.decoding.search import search
from mmlm.decoding.search_options import SearchOptions
from mmlm.utils.errors import UserError

B = 3
V = 5
L = 4
WIDE = SearchOptions(max_length=L, beam_size=24, n_best=8, length_penalty=0.6)
TEXTS = [[3, 4, 4, EOS], [3, 4, EOS], [4, EOS], [3, 3, EOS], [EOS]]


def begin_toy(model, examples, options):
  cache = {
    'history': jnp.full((examples * options.beams, 8), PAD, jnp.int32),
    'count': jnp.array(0),
  }
  return make_step(model), cache, False


def run(options, *weighted):
  """Searches with [(weight, seed of a toy model or tables)]."""

  models = [what if isinstance(what, ngram.NgramTables) else toy(what, B) for _, what in weighted]

  @jax.jit
  def go():
    parts = []
    for (weight, _), model in zip(weighted, models):
      if isinstance(model, ngram.NgramTables):
        begin = begin_ngram
      else:
        begin = begin_toy
      parts.append(WeightedStep(weight, *begin(jax.tree.map(jnp.asarray, model), B, options)))
    step, cache, scored = combine(parts)
    return search(step, cache, options, jnp.full((B, 1), BOS), scored=scored)

  return jax.tree.map(np.asarray, go())


@functools.cache
def tables(order=3):
  return train_ngram(TEXTS, order, V, SearchOptions())


@pytest.mark.parametrize('method', ['greedy', 'beam'])
def test_weight_0_is_the_plain_search_bit_by_bit(method):
  options = SearchOptions(method, max_length=L, beam_size=3)
  plain = run(options, (1.0, 0))
  for other in ((0.0, 1), (0.0, tables())):
    jax.tree.map(np.testing.assert_array_equal, plain, run(options, (1.0, 0), other))
  assert np.all(run(options, (1.0, 0), (2.0, 1)).log_probs < plain.log_probs)


def ngram_log_prob(order, tokens):
  found = tables(order)
  history = 0
  history = found.next_history[0, BOS]
  total = 0.0
  for token in tokens:
    total += found.log_probs[history, token]
    history = found.next_history[history, token]
  return total


def test_a_wide_beam_is_brute_force_over_the_weighted_sum():
  """The rows of three caches change places together."""
  result = run(WIDE, (0.7, 0), (0.5, 1), (0.3, tables()))
  heads = [h for n in range(L + 1) for h in itertools.product((3, 4), repeat=n)]
  every = [(len(h) == L, h if len(h) == L else (*h, EOS)) for h in heads]
  for b in range(B):

    def total(y, b=b):
      return (
        0.7 * log_prob(toy(0, B), b, y)
        + 0.5 * log_prob(toy(1, B), b, y)
        + 0.3 * ngram_log_prob(3, y)
      )

    best = sorted((cut, -total(y) / ((5 + len(y)) / 6) ** 0.6, y) for cut, y in every)[
      : WIDE.n_best
    ]
    assert listed(result, b) == [y for *_, y in best]
    np.testing.assert_allclose(result.scores[b], [-s for _, s, _ in best], rtol=1e-4)


def test_a_narrow_beam_is_scored_by_its_own_tokens():
  options = SearchOptions(max_length=7, beam_size=3, n_best=3, length_penalty=0.0)
  result = run(options, (1.0, 2), (0.4, tables()))
  for b in range(B):
    for tokens, log_probability in zip(listed(result, b), result.log_probs[b]):
      np.testing.assert_allclose(
        log_probability, log_prob(toy(2, B), b, tokens) + 0.4 * ngram_log_prob(3, tokens), rtol=1e-4
      )


# n-grams


@pytest.mark.parametrize('order', [2, 3, 4])
def test_every_history_has_probabilities_that_sum_to_one(order):
  found = tables(order)
  np.testing.assert_allclose(np.exp(found.log_probs).sum(1), 1, rtol=1e-5)
  assert np.all(np.isneginf(found.log_probs[:, [PAD, BOS]])) and np.all(
    np.isfinite(found.log_probs[:, [EOS, 3, 4]])
  )
  assert found.next_history.min() >= 0 and found.next_history.max() < len(found.log_probs)


def test_probabilities_are_those_of_the_formula():
  """By hand: Witten-Bell over histories as Python counts them."""

  def probability(word, history):
    seen = []
    for text in TEXTS:
      for tokens in ((BOS, *text),):
        for i in range(1, len(tokens)):
          if tuple(tokens[max(0, i - len(history)) : i]) == history and i >= len(history):
            seen.append(tokens[i])
    if history:
      lower = probability(word, history[1:])
    else:
      lower = 1 / 3
    kinds = len(set(seen))
    if seen:
      return (seen.count(word) + kinds * lower) / (len(seen) + kinds)
    return lower

  for order in (2, 3, 4):
    for text in itertools.product((3, 4), repeat=4):
      tokens = (BOS, *text, EOS)
      wanted = sum(
        math.log(probability(tokens[i], tokens[max(0, i - order + 1) : i]))
        for i in range(1, len(tokens))
      )
      np.testing.assert_allclose(ngram_log_prob(order, tokens[1:]), wanted, rtol=1e-5)


def test_what_was_seen_is_likelier():
  assert ngram_log_prob(3, (3, 4, EOS)) > ngram_log_prob(3, (4, 3, EOS))


def test_tables_that_are_too_large_are_refused(monkeypatch):
  monkeypatch.setattr(ngram, 'LARGEST_TABLE', 20)
  with pytest.raises(UserError, match=r'decoding.ngram=3: 9 histories of a vocabulary of 5'):
    train_ngram(TEXTS, 3, V, SearchOptions())


# Options


@pytest.mark.parametrize(
  'options, says',
  [
    (dict(ctc_weight=1.5), 'ctc_weight=1.5'),
    (dict(ctc_weight=-0.1), 'ctc_weight'),
    (dict(ngram=1), 'ngram=1'),
    (dict(ngram_weight=0.3), 'ngram_weight=0.3 needs ngram'),
    (dict(ngram=2, ngram_weight=-1.0), 'ngram_weight=-1.0'),
    (dict(language_model_weight=0.2), 'language_model_weight=0.2 needs language_model'),
    (dict(language_model_weight=-1.0), 'at least 0'),
  ],
)
def test_options_that_make_no_sense_are_refused(options, says):
  with pytest.raises(UserError, match=says):
    FusionOptions(**options)


def test_a_scorer_begins_with_its_own_arrays():
  """Other tables of the same shapes need no new program."""
  scorer = Scorer(1.0, begin_ngram)
  traces = []

  @jax.jit
  def go(arrays):
    traces.append(1)
    options = SearchOptions('greedy', max_length=L)
    step, cache, scored = scorer.begin(arrays, B, options)
    return search(step, cache, options, jnp.full((B, 1), BOS), scored=scored).tokens

  first = jax.tree.map(jnp.asarray, tables())
  turned = first._replace(log_probs=jnp.where(jnp.arange(V) == EOS, -50.0, first.log_probs))
  assert np.any(go(first) != go(turned)) and len(traces) == 1
