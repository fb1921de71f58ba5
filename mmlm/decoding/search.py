"""Greedy search, sampling and beam search over a step function, in one `lax.while_loop`.

Axes: B examples, K beams of an example (or independent draws), R = B * K (beam b * K + k), N
hypotheses returned, L = max_length generated tokens, P prompt tokens, V vocabulary, C candidates of
a beam.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from mmlm.decoding.next_tokens import best_candidates, draw, is_any, keys_of_beams
from mmlm.decoding.search_options import SearchOptions

Cache = Any  # a pytree; leaves whose first axis is R follow their hypotheses
# (tokens [R], cache) -> (logits [R, V], cache)
Step = Callable[[Array, Cache], tuple[Array, Cache]]


class SearchResult(NamedTuple):
  """N hypotheses of each example, the best first.

  Those that ended come first, by score, then those that max_length cut, by score. Where fewer
  sequences exist than were requested, the remaining ones have length 0 and score -inf.
  """

  tokens: Array  # [B, N, L] int32, without the prompt, with the end token, then padding
  lengths: Array  # [B, N] int32, generated tokens, the end token included
  scores: Array  # [B, N] log_probs / length penalty
  # [B, N] nats under the model itself (without temperature, top_k and top_p), or the summed scores
  log_probs: Array


class Hypotheses(NamedTuple):
  tokens: Array  # [B, K, L]
  lengths: Array  # [B, K] generated tokens
  log_probs: Array  # [B, K] -inf where there is none


class State(NamedTuple):
  position: Array  # [] of the token that the next step reads, prompt included
  inputs: Array  # [B, K] that token
  active: Array  # [B, K] still searched; with beams the same value for all of an example
  live: Hypotheses  # [B, K] to be extended; without beams also those that ended
  finished: Hypotheses  # [B, N] the best that ended, best first; [B, 0] without beams
  cache: Cache


def search(
  step: Step,
  cache: Cache,
  options: SearchOptions,
  prompt: Array,
  rng: Array | None = None,
  prompt_length: Array | None = None,
  active: Array | None = None,
  *,
  scored: bool = False,
  temperature: Array | None = None,
) -> SearchResult:
  """Generates tokens after `prompt` until no further step could change the result.

  Args:
    step: closes over what all beams of an example share.
    cache: for R = B * options.beams beams. Leaves whose first axis is R are re-ordered with their
      hypotheses, other leaves are not touched. It must hold P + max_length - 1 positions.
    prompt: [B, P] int tokens, padded, without the tokens that the cache holds already; a column of
      bos_id starts from nothing.
    rng: `jax.random.key`, or [B] of them, which makes the draws of an example independent of the
      other examples. None is key 0.
    prompt_length: [B], at least 1; None is P. An array, so that another length compiles nothing
      anew.
    active: [B] bool; an inactive example gets length 0 and costs no step. None is all.
    scored: the step gives scores, none above 0, that are added as they are, in place of logits.
    temperature: [B], in place of that of the options, so that another one compiles nothing anew.
  """
  prompt = jnp.asarray(prompt, jnp.int32)
  batch, prompt_size = prompt.shape
  if prompt_length is None:
    prompt_length = jnp.full(batch, prompt_size)
  if active is None:
    active = jnp.ones(batch, bool)
  uses_beams = options.method == 'beam' and options.beams > 1
  keys = None
  if options.method == 'sample':
    keys = keys_of_beams(rng, batch, options.beams)
  if temperature is None:
    divisor = options.temperature
  else:
    divisor = jnp.repeat(temperature, options.beams)[:, None]  # [R, 1]

  def body(state: State) -> State:
    logits, cache = step(state.inputs.reshape(-1), state.cache)
    logits = logits.astype(jnp.float32)
    if scored:
      log_normalizers = jnp.zeros(len(logits))  # [R]
    else:
      log_normalizers = jax.nn.logsumexp(logits, -1)
    if uses_beams:
      extended, parents = _extend_beams(logits, log_normalizers, state, options)
    else:
      extended = _extend_each(logits, log_normalizers, state, options, keys, divisor)
      parents = None
    next_position = state.position + 1
    in_prompt = (next_position < prompt_length)[:, None]  # [B, 1]
    # The cache is always updated: beams that wait are all equal, or are done.
    waits = in_prompt | ~state.active  # [B, K]
    next_of_prompt = jnp.take(prompt, next_position, axis=1, mode='clip')[:, None]
    return State(
      position=next_position,
      inputs=jnp.where(in_prompt, next_of_prompt, extended.inputs),
      active=jnp.where(waits, state.active, extended.active),
      live=_where(waits, state.live, extended.live),
      finished=_where(waits[:, :1], state.finished, extended.finished),
      cache=cache if parents is None else _reorder(cache, parents),
    )

  start = _initial_state(cache, prompt, active, options, uses_beams)
  state = lax.while_loop(lambda state: state.active.any(), body, start)
  return _result(state, options)


def length_penalty(lengths: Any, alpha: float) -> Any:
  """Returns ((5 + length) / 6) ** alpha: Wu et al. (2016), equation 14."""
  return ((5.0 + lengths) / 6.0) ** alpha


# One step


def _initial_state(
  cache: Cache,
  prompt: Array,
  active: Array,
  options: SearchOptions,
  uses_beams: bool,
) -> State:
  batch = len(prompt)
  beams = options.beams
  # All beams start equal: only the first may grow, or one hypothesis would fill all of them.
  if uses_beams:
    log_probs = jnp.where(jnp.arange(beams) > 0, -jnp.inf, 0.0)
  else:
    log_probs = jnp.zeros(beams)
  inputs = jnp.broadcast_to(prompt[:, :1], (batch, beams))
  active = jnp.broadcast_to(active[:, None], (batch, beams))
  finished = _empty_hypotheses(batch, options.n_best if uses_beams else 0, -jnp.inf, options)
  return State(
    position=jnp.zeros((), jnp.int32),
    inputs=inputs,
    active=active,
    live=_empty_hypotheses(batch, beams, log_probs, options),
    finished=finished,
    cache=jax.tree.map(jnp.asarray, cache),
  )


def _empty_hypotheses(
  batch: int,
  number: int,
  log_probs: Any,
  options: SearchOptions,
) -> Hypotheses:
  shape = (batch, number)
  return Hypotheses(
    tokens=jnp.full((*shape, options.max_length), options.pad_id, jnp.int32),
    lengths=jnp.zeros(shape, jnp.int32),
    log_probs=jnp.broadcast_to(log_probs, shape),
  )


def _extend_each(
  logits: Array,
  log_normalizers: Array,
  state: State,
  options: SearchOptions,
  keys: Array | None,
  temperature: Any,
) -> State:
  """Appends to each hypothesis by itself the most likely token, or one drawn with `keys` [R]."""
  shape = state.inputs.shape  # [B, K]
  lengths = state.live.lengths.reshape(-1)  # [R]
  tokens, chosen_logits = draw(logits, lengths, options, keys, temperature)
  tokens = tokens.reshape(shape)
  gains = (chosen_logits - log_normalizers).reshape(shape)
  live = _append(state.live, tokens, state.live.log_probs + gains)
  active = ~is_any(tokens, options.eos_ids) & (live.lengths < options.max_length)
  return state._replace(inputs=tokens, active=active, live=live)


def _extend_beams(
  logits: Array,
  log_normalizers: Array,
  state: State,
  options: SearchOptions,
) -> tuple[State, Array]:
  """Keeps the K best extensions that do not end; those among the K best that end are finished.

  Returns the new state, and the beam that each new one extends [B, K].
  """
  batch, beams = state.inputs.shape
  # With E end tokens at most K extensions of a beam go on and E end; of the (1 + E) K best of an
  # example at most E K end, so that K are left to go on.
  ends_of_beam = len(options.eos_ids)
  values, ids = best_candidates(
    logits,
    min(beams + ends_of_beam, logits.shape[1]),
    state.live.lengths.reshape(-1),
    options,
  )
  gains = values - log_normalizers[:, None]  # [R, C]
  totals = state.live.log_probs[..., None] + gains.reshape(batch, beams, -1)  # [B, K, C]
  totals = totals.reshape(batch, -1)  # [B, K C]
  log_probs, places = lax.top_k(
    totals,
    min((1 + ends_of_beam) * beams, totals.shape[1]),
  )
  parents = places // ids.shape[1]  # [B, (1 + E) K]
  tokens = jnp.take_along_axis(ids.reshape(batch, -1), places, 1)
  extended = _append(_pick(state.live, parents), tokens, log_probs)
  ends = is_any(tokens, options.eos_ids)

  finished = _add_finished(state.finished, extended, ends, options, beams)
  log_probs, best = lax.top_k(jnp.where(ends, -jnp.inf, log_probs), beams)
  live = _pick(extended, best)._replace(log_probs=log_probs)
  can_improve = _can_improve(live, finished, options)
  new_state = state._replace(
    inputs=_take(tokens, best),
    active=jnp.broadcast_to(can_improve[:, None], best.shape),
    live=live,
    finished=finished,
  )
  return new_state, _take(parents, best)


def _add_finished(
  finished: Hypotheses,
  extended: Hypotheses,
  ends: Array,
  options: SearchOptions,
  beams: int,
) -> Hypotheses:
  """Returns the N best finished hypotheses; only an end among the K best extensions counts.

  Otherwise short hypotheses would always be finished first.
  """
  counts = ends & (jnp.arange(ends.shape[1]) < beams)
  ended = extended._replace(log_probs=jnp.where(counts, extended.log_probs, -jnp.inf))
  pool = jax.tree.map(lambda *x: jnp.concatenate(x, 1), finished, ended)
  return _pick(pool, lax.top_k(_scores(pool, options), options.n_best)[1])


def _can_improve(
  live: Hypotheses,
  finished: Hypotheses,
  options: SearchOptions,
) -> Array:
  """Returns whether the best live hypothesis could still beat the worst finished one [B].

  A log-probability only falls. The penalty is monotone in the length, so that the largest one ahead
  is that of the next length or of the longest.
  """
  length = live.lengths[:, 0]
  largest_penalty = jnp.maximum(
    length_penalty(length + 1, options.length_penalty),
    length_penalty(options.max_length, options.length_penalty),
  )
  best_possible = live.log_probs[:, 0] / largest_penalty
  return (length < options.max_length) & (best_possible > _scores(finished, options)[:, -1])


def _result(state: State, options: SearchOptions) -> SearchResult:
  hypotheses = jax.tree.map(lambda *x: jnp.concatenate(x, 1), state.finished, state.live)
  scores = _scores(hypotheses, options)
  # A vocabulary may pad with its end token: only one within the length is an end.
  written = jnp.arange(options.max_length) < hypotheses.lengths[..., None]
  has_end = (is_any(hypotheses.tokens, options.eos_ids) & written).any(-1)
  ended = has_end & (hypotheses.log_probs > -jnp.inf)
  # Missing hypotheses are the empty finished ones, which come before beams without a hypothesis.
  best = jnp.lexsort((-scores, ~ended))[:, : options.n_best]
  returned = _pick(hypotheses, best)
  return SearchResult(
    tokens=returned.tokens,
    lengths=returned.lengths,
    scores=_take(scores, best),
    log_probs=returned.log_probs,
  )


# Hypotheses


def _append(
  hypotheses: Hypotheses,
  tokens: Array,
  log_probs: Array,
) -> Hypotheses:
  """Returns the hypotheses with one token more [B, K] and their new log-probabilities [B, K]."""
  places = jnp.arange(hypotheses.tokens.shape[-1])
  is_next = places == hypotheses.lengths[..., None]  # [B, K, L]
  return Hypotheses(
    tokens=jnp.where(is_next, tokens[..., None], hypotheses.tokens),
    lengths=hypotheses.lengths + 1,
    log_probs=log_probs,
  )


def _scores(hypotheses: Hypotheses, options: SearchOptions) -> Array:
  return hypotheses.log_probs / length_penalty(hypotheses.lengths, options.length_penalty)


def _pick(hypotheses: Hypotheses, index: Array) -> Hypotheses:
  """Returns the hypotheses at `index` [B, M]."""
  return Hypotheses(*(_take(x, index) for x in hypotheses))


def _take(x: Array, index: Array) -> Array:
  """Returns x [B, K, ...] at `index` [B, M]: [B, M, ...]."""
  index = index.reshape(index.shape + (1,) * (x.ndim - 2))
  return jnp.take_along_axis(x, index, 1)


def _where(
  mask: Array,
  a: Hypotheses,
  b: Hypotheses,
) -> Hypotheses:
  """Returns `a` where the mask [B, K] is True, else `b`."""

  def choose(x: Array, y: Array) -> Array:
    return jnp.where(
      mask.reshape(mask.shape + (1,) * (x.ndim - 2)),
      x,
      y,
    )

  return Hypotheses(*map(choose, a, b))


def _reorder(cache: Cache, parents: Array) -> Cache:
  """Returns the cache in which beam k of an example holds what its parent [B, K] held.

  A plain gather was the fastest of twelve ways on the CPU.
  """
  batch, beams = parents.shape
  flat = (jnp.arange(batch)[:, None] * beams + parents).reshape(-1)  # [R]

  def reorder(x: Array) -> Array:
    if x.ndim and len(x) == len(flat):
      return x.at[flat].get(mode='promise_in_bounds')
    return x

  return jax.tree.map(reorder, cache)
