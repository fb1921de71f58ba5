"""CTC against sums over all alignments: the loss, the best path, prefix beam search, and the scores
of prefixes.

Axes: B batch, S frames, T labels, V vocabulary, N hypotheses.
"""

import collections
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmlm.decoding import ctc
from mmlm.decoding.score_fusion import WeightedStep
from mmlm.decoding.search import search
from mmlm.decoding.search_options import SearchOptions
from mmlm.training.losses import ctc_losses

BLANK = 0
BOS = 1
EOS = 2
B = 4
S = 5
V = 6
WORDS = (3, 4, 5)
LENGTHS = np.array([S, 3, 1, 0])
close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)


def logits_of(seed=0, frames=S, sharp=1.5):
  """Frames of four lengths; the start and the end of a text have no probability, so that all is
  within what CTC writes.
  """
  logits = sharp * np.random.default_rng(seed).normal(size=(B, frames, V))
  logits[..., [BOS, EOS]] = -1e9
  return logits.astype(np.float32)


def mask_of(frames=S):
  return np.arange(frames) < LENGTHS[:, None]


def collapsed(path) -> tuple:
  return tuple(label for label, _ in itertools.groupby(path) if label != BLANK)


@functools.cache
def labellings(seed: int, b: int) -> dict:
  """{labelling: probability}, summed over every path, in float64."""
  logits = logits_of(seed)[b, : LENGTHS[b]].astype(np.float64)
  probs = np.exp(logits - logits.max(-1, keepdims=True))
  probs /= probs.sum(-1, keepdims=True)
  found = collections.Counter()
  for path in itertools.product((BLANK, *WORDS), repeat=len(probs)):
    found[collapsed(path)] += float(np.prod([probs[t, label] for t, label in enumerate(path)]))
  return found


def frames_of(seed, options, **kw):
  return ctc.frame_log_probs(
    jnp.array(logits_of(seed, **kw)), jnp.array(mask_of(kw.get('frames', S))), options
  )


def listed(result, b):
  return [tuple(map(int, row[:n])) for row, n in zip(result.tokens[b], result.lengths[b])]


def losses(logits, mask, labels):
  longest = max(map(len, labels)) + 1
  padded = np.zeros((len(labels), longest), int)
  there = np.zeros((len(labels), longest), bool)
  for i, row in enumerate(labels):
    padded[i, : len(row)], there[i, : len(row)] = row, True
  return ctc_losses(jnp.array(logits), jnp.array(mask), jnp.array(padded), jnp.array(there))


# The loss


@pytest.mark.parametrize('labels', [[(3, 4), (5, 5), (4,), ()], [(3, 3, 4), (3, 4, 5), (3,), ()]])
def test_the_loss_is_the_sum_over_all_paths(labels):
  found, counts = losses(logits_of(), mask_of(), labels)
  close(found[:3], [-np.log(labellings(0, b)[labels[b]]) for b in range(3)])
  assert found[3] == 0 and counts.tolist() == [len(row) for row in labels]


def test_padding_changes_neither_the_loss_nor_its_gradient():
  labels = [(3, 4), (5,), (4,), ()]
  wide = np.full((B, S + 3, V), 7, np.float32)
  wide[:, :S] = np.where(mask_of()[..., None], logits_of(), 9)
  grad = jax.grad(lambda logits, mask: losses(logits, mask, labels)[0].sum())
  close(losses(wide, mask_of(S + 3), labels)[0], losses(logits_of(), mask_of(), labels)[0])
  gradient = grad(wide, mask_of(S + 3))
  close(np.where(mask_of()[..., None], gradient[:, :S], 0), grad(logits_of(), mask_of()))
  assert not np.any(np.where(mask_of(S + 3)[..., None], 0, gradient))


def test_the_gradient_is_that_of_finite_differences():
  labels = [(3, 4, 4), (5,), (4,), ()]
  logits = logits_of().astype(np.float64)
  total = jax.jit(lambda logits: losses(logits, mask_of(), labels)[0].sum())
  gradient = jax.grad(total)(jnp.array(logits))
  for place in [(0, 1, 3), (0, 4, BLANK), (1, 2, 5), (2, 0, 4)]:
    step = np.zeros_like(logits)
    step[place] = 1e-2
    np.testing.assert_allclose(
      (total(logits + step) - total(logits - step)) / 2e-2, gradient[place], rtol=2e-2, atol=2e-3
    )


def test_what_cannot_be_aligned_has_no_loss_and_a_finite_gradient():
  """More labels than frames, equal labels without room for a blank, and no frame at all."""
  labels = [(3, 3, 4, 4), (3, 3, 3), (3, 4), (3,)]
  found, counts = losses(logits_of(), mask_of(), labels)
  assert not np.any(found) and not np.any(counts)
  gradient = jax.grad(lambda logits: losses(logits, mask_of(), labels)[0].sum())(logits_of())
  assert np.all(np.isfinite(gradient)) and not np.any(gradient)
  assert losses(logits_of(), mask_of(), [(3, 3, 4), (3, 3), (3,), ()])[1].tolist() == [
    3,
    2,
    1,
    0,
  ]  # what just fits counts


# Greedy


def test_the_best_path_is_collapsed():
  options = SearchOptions('greedy', max_length=S)
  result = ctc.best_path(frames_of(3, options), options)
  for b, n in enumerate(LENGTHS):
    path = logits_of(3)[b, :n].argmax(-1)
    assert listed(result, b) == [collapsed(path)]
  by_hand = np.full((1, 7, V), -9.0, np.float32)
  by_hand[0, np.arange(7), [3, 3, BLANK, 3, 4, 4, BOS]] = 0  # the start is never written
  log_probs = ctc.frame_log_probs(by_hand, np.ones((1, 7), bool), options)
  assert listed(ctc.best_path(log_probs, options), 0)[0][:3] == (3, 3, 4)
  short = SearchOptions('greedy', max_length=2)
  assert listed(ctc.best_path(log_probs, short), 0) == [(3, 3)]


# Prefix beam search


def beam(seed, size, n_best, scorers=(), frames=S, length=S):
  options = SearchOptions('beam', max_length=length, beam_size=size, n_best=n_best)
  return jax.tree.map(
    np.asarray,
    jax.jit(lambda: ctc.prefix_beam(frames_of(seed, options, frames=frames), options, scorers))(),
  )


@pytest.mark.parametrize('seed', range(3))
def test_a_wide_beam_is_the_sum_over_all_paths(seed):
  result = beam(seed, 150, 12)
  for b in range(B):
    expected = labellings(seed, b).most_common(12)
    assert listed(result, b)[: len(expected)] == [labelling for labelling, _ in expected]
    close(result.log_probs[b, : len(expected)], np.log([p for _, p in expected]))
    assert np.all(np.isneginf(result.log_probs[b, len(expected) :])) and np.all(
      result.lengths[b, len(expected) :] == 0
    )


def test_a_narrow_beam_merges_equal_prefixes_and_never_overstates():
  for seed in range(3):
    result = beam(seed, 4, 4)
    for b in range(B):
      found = listed(result, b)
      assert len(set(found)) == len(found) or LENGTHS[b] == 0
      for labelling, log_prob in zip(found, result.log_probs[b]):
        assert np.isneginf(log_prob) or log_prob <= np.log(labellings(seed, b)[labelling]) + 1e-4
    best = [labellings(seed, b).most_common(1)[0][0] for b in range(B)]
    assert [listed(result, b)[0] for b in range(B)] == best


def test_frames_of_padding_change_nothing_and_a_short_limit_is_kept():
  wide = np.zeros((B, S + 3, V), np.float32)
  wide[:, :S] = logits_of(1)
  options = SearchOptions('beam', max_length=S, beam_size=8, n_best=3)
  longer = ctc.prefix_beam(
    ctc.frame_log_probs(jnp.array(wide), jnp.array(mask_of(S + 3)), options), options
  )
  plain = beam(1, 8, 3)
  np.testing.assert_array_equal(longer.tokens, plain.tokens)
  close(longer.log_probs, plain.log_probs)
  assert beam(1, 8, 3, length=1).lengths.max() == 1


def last_token_scorer(weight=0.7, eos=-0.3):
  """A scorer whose scores depend on the two tokens before: its cache must follow its prefix."""
  table = jax.nn.log_softmax(2 * jax.random.normal(jax.random.key(5), (V, V, V)))

  def step(tokens, cache):
    return table[cache['last'], tokens], {'last': tokens}

  return WeightedStep(weight, step, {'last': jnp.full(1, EOS, jnp.int32)}, True), np.asarray(
    table, np.float64
  )


def test_scorers_are_asked_for_each_token_of_a_prefix_and_for_its_end():
  scorer, table = last_token_scorer()

  def given(labelling):
    history = (EOS, BOS, *labelling, EOS)
    return 0.7 * sum(
      table[history[i], history[i + 1], history[i + 2]] for i in range(len(labelling) + 1)
    )

  result = beam(2, 150, 8, [scorer])
  for b in range(B):
    expected = sorted(
      ((np.log(p) + given(y), y) for y, p in labellings(2, b).items()), reverse=True
    )[:8]
    assert listed(result, b)[: len(expected)] == [y for _, y in expected]
    close(result.log_probs[b, : len(expected)], [score for score, _ in expected], rtol=1e-3)
  assert [listed(result, b)[0] for b in range(B)] != [
    listed(beam(2, 150, 8), b)[0] for b in range(B)
  ]


# Scores of prefixes


@functools.cache
def prefix_log_prob(seed, b, prefix):
  return np.log(sum(p for y, p in labellings(seed, b).items() if y[: len(prefix)] == prefix))


@pytest.mark.parametrize('prefix', [(), (3,), (3, 4), (4, 4), (5, 5, 3)])
def test_scores_of_prefixes_are_sums_over_all_that_begin_so(prefix):
  options = SearchOptions('greedy', max_length=S)
  step, cache, scored = ctc.prefix_scorer(frames_of(0, options), options)
  assert scored
  for token in (BOS, *prefix):
    scores, cache = step(jnp.full(B, token), cache)
  for b in range(B):
    if len(prefix) + sum(x == y for x, y in itertools.pairwise(prefix)) > LENGTHS[b]:
      continue
    start = prefix_log_prob(0, b, prefix)
    close(scores[b, EOS], np.log(labellings(0, b)[prefix]) - start, atol=1e-4)
    for word in WORDS:
      wanted = sum(
        p for y, p in labellings(0, b).items() if y[: len(prefix) + 1] == (*prefix, word)
      )
      assert (
        scores[b, word] < -1e20
        if wanted == 0
        else abs(scores[b, word] - (np.log(wanted) - start)) < 1e-3
      )


def test_a_search_by_scores_of_prefixes_alone_finds_the_likeliest_labellings():
  """A search over tokens and one over frames agree: rows change places, and what they know of their
  prefix follows.
  """
  options = SearchOptions('beam', max_length=S + 1, beam_size=40, n_best=6, length_penalty=0.0)

  def run():
    return search(
      *ctc.prefix_scorer(frames_of(1, options), options)[:2],
      options,
      jnp.full((B, 1), BOS),
      scored=True,
    )

  result = jax.tree.map(np.asarray, jax.jit(run)())
  for b in range(3):
    expected = labellings(1, b).most_common(6)
    assert listed(result, b)[: len(expected)] == [(*y, EOS) for y, _ in expected]
    close(result.log_probs[b, : len(expected)], np.log([p for _, p in expected]), rtol=1e-3)
