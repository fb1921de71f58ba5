"""Decoding of CTC: the best path, prefix beam search over frames, and the scores of prefixes that another search asks for.

The blank is the padding token, which no text holds; the tokens that start and end a text are never written.

Axes: B examples, K prefixes an example, R = B * K, S frames, V vocabulary, L = max_length tokens, N hypotheses returned.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from mmlm.decoding.score_fusion import Part, each_row, summed
from mmlm.decoding.search import SearchOptions, SearchResult, is_any, rows, top_k

NEVER = -1e30  # log of a probability of 0; finite, so that nothing is NaN


def frame_log_probs(logits, mask, options: SearchOptions):
  """[B, S, V] logits -> log-probabilities; a masked frame is a certain blank, which changes no labelling."""
  blank = jnp.where(jnp.arange(logits.shape[-1]) == options.pad_id, 0.0, NEVER)
  return jnp.where(mask[..., None], jax.nn.log_softmax(logits.astype(jnp.float32)), blank)


def best_path(log_probs, options: SearchOptions) -> SearchResult:
  """The likeliest label of each frame, equals in a row as one, without blanks (Graves et al. 2006, 3.2); N is 1.

  What follows the first L tokens is left out. `log_probs` of the result are of the path, one of many that may say the same.
  """
  batch, _, vocabulary = log_probs.shape
  log_probs = jnp.where(
    _written(vocabulary, options) | (jnp.arange(vocabulary) == options.pad_id), log_probs, NEVER
  )
  labels = log_probs.argmax(-1).astype(jnp.int32)  # [B, S]
  before = jnp.pad(
    labels[:, :-1],
    ((0, 0), (1, 0)),
    constant_values=options.pad_id,
  )
  kept = (labels != options.pad_id) & (labels != before)
  places = jnp.where(kept, jnp.cumsum(kept, 1) - 1, options.max_length)
  tokens = jnp.full((batch, options.max_length), options.pad_id, jnp.int32)
  tokens = tokens.at[jnp.arange(batch)[:, None], places].set(labels, mode='drop')
  lengths = jnp.minimum(kept.sum(1), options.max_length)
  total = log_probs.max(-1).sum(-1)
  return SearchResult(
    tokens[:, None],
    lengths[:, None],
    total[:, None],
    total[:, None],
  )


class _Prefixes(NamedTuple):
  tokens: jax.Array  # [B, K, L]
  lengths: jax.Array  # [B, K]
  blank: jax.Array  # [B, K] log-probability of the paths that end in a blank
  label: jax.Array  # [B, K] and in the last token
  given: jax.Array  # [B, K] what the scorers have given to the tokens so far
  ahead: Any  # [B, K, V] what they give to the next one; 0 without scorers
  cache: Any  # of the scorers, [R, ...]


def prefix_beam(log_probs, options: SearchOptions, scorers: list[Part] = ()) -> SearchResult:
  """The likeliest labellings, each the sum over its paths (Graves 2012, 7.5.3; Hannun et al. 2014, algorithm 1).

  `beam_size` prefixes are kept after each frame; `log_probs` are exact where none was dropped. They are sorted by log-probability,
  to which scorers add theirs for every token and the end: `length_penalty` and `min_length` have no part in it.

  Args:
    log_probs: [B, S, V], as `frame_log_probs` gives them.
    scorers: of one row, as they begin for one example and a greedy search.
  """
  batch = len(log_probs)
  width = rows(options)
  step = None
  ahead = jnp.zeros((batch, width, 1))
  cache = ()
  if scorers:
    step, cache = each_row(*summed(scorers), batch * width)
    ahead, cache = step(jnp.full(batch * width, options.bos_id), cache)
    ahead = ahead.reshape(batch, width, -1)
  # All prefixes start empty: only the first may grow, or the beam would be full of equals.
  first = jnp.broadcast_to(jnp.where(jnp.arange(width) > 0, NEVER, 0.0), (batch, width))
  tokens = jnp.full((batch, width, options.max_length), options.pad_id, jnp.int32)
  never = jnp.full_like(first, NEVER)
  zero = jnp.zeros_like(first)
  start = _Prefixes(tokens, jnp.zeros((batch, width), jnp.int32), first, never, zero, ahead, cache)

  def frame(state, log_probs):
    return (_after_frame(state, log_probs, options, step), None)

  last, _ = lax.scan(frame, start, log_probs.swapaxes(0, 1))
  total = jnp.logaddexp(last.blank, last.label)
  total += last.given + (last.ahead[..., options.eos_ids[0]] if scorers else 0)
  total, order = lax.top_k(
    jnp.where(total > NEVER / 2, total, -jnp.inf),
    options.n_best,
  )
  there = jnp.isfinite(total)
  lengths = jnp.where(there, _at(last.lengths, order), 0)
  tokens = jnp.where(there[..., None], _at(last.tokens, order), options.pad_id)
  return SearchResult(tokens, lengths, total, total)


def _written(vocabulary: int, options: SearchOptions):
  """[V]: what may stand in a text."""
  every = jnp.arange(vocabulary)
  return ~is_any(every, (options.pad_id, options.bos_id, *options.eos_ids))


def _after_frame(state: _Prefixes, log_probs, options, step) -> _Prefixes:
  """The K best prefixes with one frame more, [B, V]."""
  batch, width, limit = state.tokens.shape
  vocabulary = log_probs.shape[1]
  last = _at(state.tokens, jnp.maximum(state.lengths - 1, 0)[..., None], 2)[
    ..., 0
  ]  # [B, K], padding where nothing is written
  either = jnp.logaddexp(state.blank, state.label)
  blank = either + log_probs[:, options.pad_id, None]
  label = state.label + _at(log_probs, last)
  same = jnp.arange(vocabulary) == last[..., None]  # [B, K, V]
  grown = log_probs[:, None] + jnp.where(
    same,
    state.blank[..., None],
    either[..., None],
  )
  grown = jnp.where(
    _written(vocabulary, options) & (state.lengths < limit)[..., None], grown, NEVER
  )

  # A prefix that grows into one which is there already joins it.
  joins = _grows_into(
    state, width
  )  # [B, K, K]: prefix k and the last token of prefix j are prefix j
  onto = jnp.take_along_axis(grown, jnp.broadcast_to(last[:, None], joins.shape), 2)
  label = jnp.logaddexp(label, jnp.where(joins, onto, NEVER).max(1))
  example = jnp.arange(batch)[:, None, None]
  row = jnp.arange(width)[:, None]
  grown = grown.at[example, row, last[:, None]].min(
    jnp.where(
      joins,
      NEVER,
      jnp.inf,
    )
  )

  def value(total, given):
    return (total + given).reshape(batch, -1)

  stay = value(jnp.logaddexp(blank, label), state.given)
  grow = value(grown, state.given[..., None] + state.ahead)
  _, best = top_k(jnp.concatenate([stay, grow], 1), width)  # [B, K]
  stays = best < width
  parent = jnp.where(best < width, best, (best - width) // vocabulary)
  token = (best - width) % vocabulary

  def pick(x):
    return _at(x, parent)

  lengths = pick(state.lengths)
  here = ~stays[..., None] & (jnp.arange(limit) == lengths[..., None])
  new = _Prefixes(
    jnp.where(here, token[..., None], pick(state.tokens)),
    lengths + ~stays,
    jnp.where(stays, pick(blank), NEVER),
    jnp.where(
      stays,
      pick(label),
      _at(grown.reshape(batch, -1), jnp.where(stays, 0, best - width)),
    ),
    pick(state.given),
    state.ahead,
    state.cache,
  )
  if step:
    return _asked(new, pick(state.ahead), parent, token, stays, step)
  return new


def _asked(new: _Prefixes, ahead, parent, token, stays, step) -> _Prefixes:
  """With what the scorers give: those of a prefix that has grown are asked for its next token, the others keep their answer."""
  batch, width = stays.shape
  flat = (jnp.arange(batch)[:, None] * width + parent).reshape(-1)
  kept = jax.tree.map(lambda x: x[flat], new.cache)
  scores, cache = step(jnp.where(stays, 0, token).reshape(-1), kept)

  def held(old, x):
    return jnp.where(stays.reshape(-1, *[1] * (x.ndim - 1)), old, x)

  given = new.given + jnp.where(
    stays,
    0,
    jnp.take_along_axis(ahead, token[..., None], 2)[..., 0],
  )
  ahead = jnp.where(stays[..., None], ahead, scores.reshape(ahead.shape))
  return new._replace(given=given, ahead=ahead, cache=jax.tree.map(held, kept, cache))


def _grows_into(state: _Prefixes, width):
  """[B, K, K]: whether prefix j is prefix k and one token more."""
  tokens = state.tokens
  lengths = state.lengths
  beyond = jnp.arange(tokens.shape[-1]) >= lengths[:, :, None, None]
  equal = ((tokens[:, :, None] == tokens[:, None]) | beyond).all(-1)
  return equal & (lengths[:, None] == lengths[:, :, None] + 1)


def _at(x, index, axis=1):
  return jnp.take_along_axis(x, index.reshape(index.shape + (1,) * (x.ndim - index.ndim)), axis)


def prefix_scorer(log_probs, options: SearchOptions):
  """(step, cache, scored) for a search over tokens: log p(prefix with token) - log p(prefix) under CTC (Watanabe et al. 2017, algorithm 2).

  The probability of a prefix is that of all labellings that begin with it, that of the end token is of the prefix itself as the
  whole labelling. All tokens are scored by one matrix product. What a row knows of its prefix stands in the cache, rows first.

  Args:
    log_probs: [B, S, V], as `frame_log_probs` gives them.
  """
  width, (batch, frames, vocabulary) = rows(options), log_probs.shape
  probs = jnp.exp(log_probs)
  by_token = log_probs.swapaxes(1, 2)  # [B, V, S]

  def repeat(x):
    return jnp.repeat(x, width, 0)  # [B, ...] -> [R, ...]

  blanks = repeat(by_token[:, options.pad_id])  # [R, S]

  def of(tokens):
    return jnp.take_along_axis(by_token, tokens.reshape(batch, width, 1), 1).reshape(-1, frames)

  def step(tokens, cache):
    begins = cache['count'] == 0
    emitted = of(tokens)
    known = _Known(
      *(
        jnp.where(begins, old, new)
        for old, new in zip(cache['known'], _grown(cache, tokens, emitted, blanks))
      )
    )
    either = jnp.logaddexp(known.blank, known.label)
    before = _shifted(either, begins)
    largest = before.max(1, keepdims=True)
    mass = jnp.einsum(
      'bks,bsv->bkv', jnp.exp(before - largest).reshape(batch, width, frames), probs
    ).reshape(-1, vocabulary)
    scores = jnp.where(mass > 1e-37, largest + jnp.log(jnp.maximum(mass, 1e-37)), NEVER)
    # Only after a blank is a token written twice.
    again = jax.nn.logsumexp(_shifted(known.blank, begins) + emitted, 1)
    every = jnp.arange(vocabulary)
    scores = jnp.where(
      (every == tokens[:, None]) & ~begins,
      again[:, None],
      scores,
    )
    scores = jnp.where(is_any(every, options.eos_ids), either[:, -1:], scores)
    new = {'known': known, 'last': tokens, 'count': cache['count'] + 1}
    return jnp.minimum(scores - known.score[:, None], 0), new

  never = jnp.full((batch * width, frames), NEVER)
  known = _Known(never, jnp.cumsum(blanks, 1), jnp.zeros(batch * width))
  return (
    step,
    {
      'known': known,
      'last': jnp.zeros(batch * width, jnp.int32),
      'count': jnp.zeros((), jnp.int32),
    },
    True,
  )


class _Known(NamedTuple):
  """Of the prefix of a row: log-probabilities of the paths up to each frame that write it, and of all labellings that begin with it."""

  label: jax.Array  # [R, S] paths that end in its last token
  blank: jax.Array  # [R, S] and in a blank
  score: jax.Array  # [R]


def _grown(cache, tokens, emitted, blanks) -> _Known:
  """The same of the prefix with one token more; `emitted` [R, S] is its log-probability in each frame, `blanks` that of the blank."""
  old = cache['known']
  twice = (tokens == cache['last'])[:, None]
  before = _shifted(
    jnp.where(twice, old.blank, jnp.logaddexp(old.blank, old.label)), cache['count'] == 1
  )

  def frame(last, at):
    label, blank = last
    before, emitted, blanks = at
    new = jnp.logaddexp(label, before) + emitted, jnp.logaddexp(blank, label) + blanks
    return new, new

  nothing = jnp.full(len(tokens), NEVER)
  _, (label, blank) = lax.scan(frame, (nothing, nothing), (before.T, emitted.T, blanks.T))
  return _Known(label.T, blank.T, jax.nn.logsumexp(before + emitted, 1))


def _shifted(x, begins):
  """[R, S] one frame later; before the first frame the empty prefix is certain, any other impossible."""
  return jnp.concatenate(
    [
      jnp.where(begins, 0.0, jnp.full_like(x[:, :1], NEVER)),
      x[:, :-1],
    ],
    1,
  )
