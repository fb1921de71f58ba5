"""Decoding of CTC: the best path, prefix beam search, and scores of prefixes for other searches.

The blank is the padding token, which no text contains. Begin and end tokens are never written.

Axes: B examples, K prefixes of an example, R = B * K, S frames, V vocabulary, L = max_length
tokens, N hypotheses returned.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from mmlm.decoding.next_tokens import is_any, top_k
from mmlm.decoding.score_fusion import WeightedStep, for_each_beam, weighted_sum
from mmlm.decoding.search import Cache, SearchResult, Step
from mmlm.decoding.search_options import SearchOptions

LOG_ZERO = -1e30  # log of a probability of 0; finite, so that nothing becomes NaN
SMALLEST_MASS = 1e-37  # sums of probabilities below this count as 0


def frame_log_probs(
  logits: Array,
  mask: Array,
  options: SearchOptions,
) -> Array:
  """Returns log-probabilities [B, S, V]; a masked frame is a certain blank, which writes
  nothing.
  """
  is_blank = jnp.arange(logits.shape[-1]) == options.pad_id
  certain_blank = jnp.where(is_blank, 0.0, LOG_ZERO)
  log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
  return jnp.where(mask[..., None], log_probs, certain_blank)


def _is_text(vocabulary: int, options: SearchOptions) -> Array:
  """Returns [V]: whether a token can be part of a text."""
  special = (options.pad_id, options.bos_id, *options.eos_ids)
  return ~is_any(jnp.arange(vocabulary), special)


# Best path


def best_path(log_probs: Array, options: SearchOptions) -> SearchResult:
  """Returns the most likely label of each frame, collapsed (Graves et al. 2006, 3.2); N is 1.

  Equal labels in a row become one, blanks are removed, and tokens behind the first L are dropped.
  `log_probs` of the result are those of the path, one of many that write the same text.
  """
  batch, _, vocabulary = log_probs.shape
  is_blank = jnp.arange(vocabulary) == options.pad_id
  log_probs = jnp.where(_is_text(vocabulary, options) | is_blank, log_probs, LOG_ZERO)
  labels = log_probs.argmax(-1).astype(jnp.int32)  # [B, S]
  previous = jnp.pad(
    labels[:, :-1],
    ((0, 0), (1, 0)),
    constant_values=options.pad_id,
  )
  is_new = (labels != options.pad_id) & (labels != previous)
  places = jnp.where(is_new, jnp.cumsum(is_new, 1) - 1, options.max_length)
  example = jnp.arange(batch)[:, None]
  tokens = jnp.full((batch, options.max_length), options.pad_id, jnp.int32)
  tokens = tokens.at[example, places].set(labels, mode='drop')
  lengths = jnp.minimum(is_new.sum(1), options.max_length)
  total = log_probs.max(-1).sum(-1)
  total = total[:, None]
  return SearchResult(
    tokens=tokens[:, None],
    lengths=lengths[:, None],
    scores=total,
    log_probs=total,
  )


# Prefix beam search


class _Beams(NamedTuple):
  """The K best prefixes of each example after some frames."""

  tokens: Array  # [B, K, L]
  lengths: Array  # [B, K]
  log_prob_blank: Array  # [B, K] of the paths that end in a blank
  log_prob_label: Array  # [B, K] of the paths that end in the last token
  score: Array  # [B, K] of the tokens so far, from the scorers
  next_scores: Any  # [B, K, V] of the next token, from the scorers; 0 without scorers
  cache: Cache  # of the scorers, leaves [R, ...]


def prefix_beam(
  log_probs: Array, options: SearchOptions, scorers: list[WeightedStep] | tuple = ()
) -> SearchResult:
  """Returns the most likely labellings (Graves 2012, 7.5.3; Hannun et al. 2014, algorithm 1).

  The probability of a labelling is the sum over its paths. `beam_size` prefixes are kept after each
  frame; `log_probs` are exact where no prefix was dropped. Hypotheses are sorted by
  log-probability, to which scorers add theirs for each token and the end. `length_penalty` and
  `min_length` are not used.

  Args:
    log_probs: [B, S, V], as `frame_log_probs` gives them.
    scorers: each at its beginning, for one example and a greedy search.
  """
  step = None
  if scorers:
    step, cache = for_each_beam(
      *weighted_sum(list(scorers)),
      len(log_probs) * options.beams,
    )
    start = _initial_beams(len(log_probs), options, step, cache)
  else:
    start = _initial_beams(len(log_probs), options)

  def advance(beams: _Beams, log_probs: Array) -> tuple[_Beams, None]:
    return _after_frame(beams, log_probs, options, step), None

  beams, _ = lax.scan(advance, start, log_probs.swapaxes(0, 1))
  total = jnp.logaddexp(beams.log_prob_blank, beams.log_prob_label)
  score_of_end = beams.next_scores[..., options.eos_ids[0]] if scorers else 0
  total += beams.score + score_of_end
  possible = jnp.where(total > LOG_ZERO / 2, total, -jnp.inf)
  total, order = lax.top_k(possible, options.n_best)
  exists = jnp.isfinite(total)
  lengths = jnp.where(exists, _take(beams.lengths, order), 0)
  tokens = jnp.where(exists[..., None], _take(beams.tokens, order), options.pad_id)
  return SearchResult(
    tokens=tokens,
    lengths=lengths,
    scores=total,
    log_probs=total,
  )


def _initial_beams(
  batch: int, options: SearchOptions, step: Step | None = None, cache: Cache = ()
) -> _Beams:
  """Returns empty prefixes."""
  size = options.beams
  next_scores = jnp.zeros((batch, size, 1))
  if step is not None:
    next_scores, cache = step(jnp.full(batch * size, options.bos_id), cache)
    next_scores = next_scores.reshape(batch, size, -1)
  # All prefixes start equal: only the first may grow, or one prefix would fill all beams.
  only_first = jnp.where(jnp.arange(size) > 0, LOG_ZERO, 0.0)
  log_prob_blank = jnp.broadcast_to(only_first, (batch, size))
  return _Beams(
    tokens=jnp.full((batch, size, options.max_length), options.pad_id, jnp.int32),
    lengths=jnp.zeros((batch, size), jnp.int32),
    log_prob_blank=log_prob_blank,
    log_prob_label=jnp.full_like(log_prob_blank, LOG_ZERO),
    score=jnp.zeros_like(log_prob_blank),
    next_scores=next_scores,
    cache=cache,
  )


def _after_frame(
  beams: _Beams,
  log_probs: Array,
  options: SearchOptions,
  step: Step | None,
) -> _Beams:
  """Returns the K best prefixes after one frame more, [B, V]."""
  batch, size, _ = beams.tokens.shape
  vocabulary = log_probs.shape[1]
  either = jnp.logaddexp(beams.log_prob_blank, beams.log_prob_label)  # [B, K]
  # [B, K], padding where the prefix is empty
  last_place = jnp.maximum(beams.lengths - 1, 0)[..., None]
  last = _take(beams.tokens, last_place, 2)[..., 0]
  # Prefixes that stay as they are: by a blank, or by their last token once more.
  stay_blank = either + log_probs[:, options.pad_id, None]
  stay_label = beams.log_prob_label + _take(log_probs, last)
  extend = _extensions(beams, log_probs, either, last, options)  # [B, K, V]
  stay_label, extend = _merge(beams, stay_label, extend, last)

  stay = (jnp.logaddexp(stay_blank, stay_label) + beams.score).reshape(batch, -1)
  extend_score = beams.score[..., None] + beams.next_scores
  total = jnp.concatenate([stay, (extend + extend_score).reshape(batch, -1)], 1)  # [B, K + K V]
  _, best = top_k(total, size)  # [B, K]
  stays = best < size
  parent = jnp.where(stays, best, (best - size) // vocabulary)
  token = (best - size) % vocabulary
  extension = jnp.where(stays, 0, best - size)
  extended = _take(extend.reshape(batch, -1), extension)

  tokens, lengths = _append(beams, parent, token, stays)
  new = _Beams(
    tokens=tokens,
    lengths=lengths,
    log_prob_blank=jnp.where(stays, _take(stay_blank, parent), LOG_ZERO),
    log_prob_label=jnp.where(stays, _take(stay_label, parent), extended),
    score=_take(beams.score, parent),
    next_scores=beams.next_scores,
    cache=beams.cache,
  )
  if step is None:
    return new
  return _score_extended(new, _take(beams.next_scores, parent), parent, token, stays, step)


def _extensions(
  beams: _Beams,
  log_probs: Array,
  either: Array,
  last: Array,
  options: SearchOptions,
) -> Array:
  """Returns log-probabilities [B, K, V] of each prefix with one token more.

  The last token is written once more only behind a blank.
  """
  vocabulary = log_probs.shape[1]
  longest = beams.tokens.shape[2]
  repeats = jnp.arange(vocabulary) == last[..., None]  # [B, K, V]
  paths = jnp.where(repeats, beams.log_prob_blank[..., None], either[..., None])
  extend = log_probs[:, None] + paths
  fits = (beams.lengths < longest)[..., None]
  return jnp.where(_is_text(vocabulary, options) & fits, extend, LOG_ZERO)


def _merge(
  beams: _Beams,
  stay_label: Array,
  extend: Array,
  last: Array,
) -> tuple[Array, Array]:
  """Adds an extension that is another of the prefixes to that prefix, and removes the extension."""
  batch, size = last.shape
  becomes = _becomes(beams)  # [B, K, K]: prefix k and the last token of prefix j make prefix j
  extend_by_last = jnp.take_along_axis(extend, jnp.broadcast_to(last[:, None], becomes.shape), 2)
  merged = jnp.where(becomes, extend_by_last, LOG_ZERO).max(1)
  stay_label = jnp.logaddexp(stay_label, merged)
  example = jnp.arange(batch)[:, None, None]
  prefix = jnp.arange(size)[:, None]
  limit = jnp.where(becomes, LOG_ZERO, jnp.inf)
  return stay_label, extend.at[example, prefix, last[:, None]].min(limit)


def _becomes(beams: _Beams) -> Array:
  """Returns [B, K, K]: whether prefix j is prefix k and one token more."""
  tokens = beams.tokens
  lengths = beams.lengths
  is_behind = jnp.arange(tokens.shape[-1]) >= lengths[:, :, None, None]
  same_start = ((tokens[:, :, None] == tokens[:, None]) | is_behind).all(-1)
  return same_start & (lengths[:, None] == lengths[:, :, None] + 1)


def _append(
  beams: _Beams,
  parent: Array,
  token: Array,
  stays: Array,
) -> tuple[Array, Array]:
  """Returns tokens and lengths of the parents, with the new token where a prefix does not stay."""
  longest = beams.tokens.shape[2]
  lengths = _take(beams.lengths, parent)
  is_next = ~stays[..., None] & (jnp.arange(longest) == lengths[..., None])
  tokens = jnp.where(is_next, token[..., None], _take(beams.tokens, parent))
  return tokens, lengths + ~stays


def _score_extended(
  new: _Beams,
  next_scores: Array,
  parent: Array,
  token: Array,
  stays: Array,
  step: Step,
) -> _Beams:
  """Adds the scores of new tokens, and scores what may follow them.

  Prefixes that stay keep their scores and caches. `next_scores` [B, K, V] are those of the parents.
  """
  batch, size = stays.shape
  flat_parent = (jnp.arange(batch)[:, None] * size + parent).reshape(-1)
  parent_cache = jax.tree.map(lambda x: x[flat_parent], new.cache)
  scores, cache = step(jnp.where(stays, 0, token).reshape(-1), parent_cache)

  def unless_extended(old: Array, x: Array) -> Array:
    return jnp.where(
      stays.reshape(-1, *[1] * (x.ndim - 1)),
      old,
      x,
    )

  score_of_token = jnp.take_along_axis(next_scores, token[..., None], 2)[..., 0]
  score = new.score + jnp.where(stays, 0, score_of_token)
  next_scores = jnp.where(stays[..., None], next_scores, scores.reshape(next_scores.shape))
  cache = jax.tree.map(unless_extended, parent_cache, cache)
  return new._replace(score=score, next_scores=next_scores, cache=cache)


def _take(
  x: Array,
  index: Array,
  axis: int = 1,
) -> Array:
  """Returns x at `index` along an axis; both have the same axes up to that one."""
  index = index.reshape(index.shape + (1,) * (x.ndim - index.ndim))
  return jnp.take_along_axis(x, index, axis)


# Scores of prefixes


class _PrefixScores(NamedTuple):
  """Forward variables of the prefix of each beam, as log-probabilities."""

  alpha_label: Array  # [R, S] of the paths up to a frame that write it and end in its last token
  alpha_blank: Array  # [R, S] of those that end in a blank
  log_prob: Array  # [R] of all labellings that begin with the prefix


def prefix_scorer(log_probs: Array, options: SearchOptions) -> tuple[Step, dict[str, Any], bool]:
  """Returns (step, cache, scored) for a search over tokens (Watanabe et al. 2017, algorithm 2).

  The score of a token is log p(prefix with the token) - log p(prefix) under CTC. The probability of
  a prefix is that of all labellings that begin with it; the end token scores the prefix as the
  whole labelling. All tokens are scored by one matrix product.

  Args:
    log_probs: [B, S, V], as `frame_log_probs` gives them.
  """
  beams = options.beams
  batch, frames, vocabulary = log_probs.shape
  probs = jnp.exp(log_probs)
  by_token = log_probs.swapaxes(1, 2)  # [B, V, S]
  blanks = jnp.repeat(by_token[:, options.pad_id], beams, 0)  # [R, S]

  def step(tokens: Array, cache: dict[str, Any]) -> tuple[Array, dict[str, Any]]:
    is_start = cache['count'] == 0
    of_beams = tokens.reshape(batch, beams, 1)
    emitted = jnp.take_along_axis(by_token, of_beams, 1).reshape(-1, frames)  # [R, S]
    extended = _extend_prefix(cache, tokens, emitted, blanks)
    known = _PrefixScores(
      *(jnp.where(is_start, old, new) for old, new in zip(cache['known'], extended))
    )
    either = jnp.logaddexp(known.alpha_blank, known.alpha_label)
    before = _one_frame_later(either, is_start)  # [R, S]
    largest = before.max(1, keepdims=True)
    weights = jnp.exp(before - largest).reshape(batch, beams, frames)
    mass = jnp.einsum('bks,bsv->bkv', weights, probs).reshape(-1, vocabulary)
    log_mass = largest + jnp.log(jnp.maximum(mass, SMALLEST_MASS))
    scores = jnp.where(mass > SMALLEST_MASS, log_mass, LOG_ZERO)  # [R, V]
    # The last token is written once more only behind a blank.
    after_blank = _one_frame_later(known.alpha_blank, is_start)
    repeated = jax.nn.logsumexp(after_blank + emitted, 1)
    ids = jnp.arange(vocabulary)
    is_repeated = (ids == tokens[:, None]) & ~is_start
    scores = jnp.where(is_repeated, repeated[:, None], scores)
    scores = jnp.where(
      is_any(ids, options.eos_ids),
      either[:, -1:],
      scores,
    )
    new_cache = {
      'known': known,
      'last': tokens,
      'count': cache['count'] + 1,
    }
    return jnp.minimum(scores - known.log_prob[:, None], 0), new_cache

  empty_prefix = _PrefixScores(
    alpha_label=jnp.full((batch * beams, frames), LOG_ZERO),
    alpha_blank=jnp.cumsum(blanks, 1),
    log_prob=jnp.zeros(batch * beams),
  )
  cache = {
    'known': empty_prefix,
    'last': jnp.zeros(batch * beams, jnp.int32),
    'count': jnp.zeros((), jnp.int32),
  }
  return step, cache, True


def _extend_prefix(
  cache: dict[str, Any],
  tokens: Array,
  emitted: Array,
  blanks: Array,
) -> _PrefixScores:
  """Returns the forward variables of the prefixes with one token more.

  Args:
    tokens: [R], those that are appended.
    emitted: [R, S], their log-probability in each frame.
    blanks: [R, S], that of the blank.
  """
  old = cache['known']
  repeats = (tokens == cache['last'])[:, None]
  either = jnp.logaddexp(old.alpha_blank, old.alpha_label)
  paths = jnp.where(repeats, old.alpha_blank, either)
  before = _one_frame_later(paths, cache['count'] == 1)

  def advance(alphas: tuple, frame: tuple) -> tuple[tuple, tuple]:
    label, blank = alphas
    before, emitted, blanks = frame
    new = jnp.logaddexp(label, before) + emitted, jnp.logaddexp(blank, label) + blanks
    return new, new

  start = jnp.full(len(tokens), LOG_ZERO)
  _, alphas = lax.scan(
    advance,
    (start, start),
    (before.T, emitted.T, blanks.T),
  )
  label, blank = alphas
  return _PrefixScores(
    alpha_label=label.T,
    alpha_blank=blank.T,
    log_prob=jax.nn.logsumexp(before + emitted, 1),
  )


def _one_frame_later(x: Array, is_empty: Array) -> Array:
  """Returns [R, S] shifted by a frame; before the first frame only the empty prefix is possible."""
  first = jnp.where(is_empty, 0.0, jnp.full_like(x[:, :1], LOG_ZERO))
  return jnp.concatenate([first, x[:, :-1]], 1)
