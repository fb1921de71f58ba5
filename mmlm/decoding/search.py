"""Greedy, sampled and beam search over a step function, all in one `lax.while_loop` of static shapes.

Axes: B examples, K rows an example, R = B * K (row b * K + k), N hypotheses returned, L = max_length tokens
generated, P prompt tokens, V vocabulary, C candidates of a row.
"""

import dataclasses
import functools
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from mmlm.utils.choices import nearest
from mmlm.utils.errors import UserError

METHODS = ('greedy', 'sample', 'beam')


@dataclasses.dataclass(frozen=True)
class SearchOptions:
  """What to search for; hashable, to be a static argument of `jax.jit`. UserError when it makes no sense."""

  method: str = 'beam'
  max_length: int = 20  # tokens generated, the end token counted, the prompt not
  min_length: int = 0  # the end token is not allowed to make a hypothesis shorter than this
  beam_size: int = 4  # for 'beam' only
  n_best: int = 1  # hypotheses returned of an example; for 'sample' the number of independent draws
  length_penalty: float = (
    0.6  # alpha of Wu et al. (2016), equation 14; 0 ranks by plain log-probability
  )
  temperature: float = (
    1.0  # for 'sample' only, as the next two; temperature, then top_k, then top_p
  )
  top_k: int = 0  # draw among this many likeliest tokens; 0 is all
  top_p: float = (
    1.0  # draw in the smallest set that holds this mass: the nucleus of Holtzman et al. (2020)
  )
  pad_id: int = 0  # never generated; fills what follows the end
  bos_id: int = 1  # never generated unless it is also the end token
  eos_ids: tuple[int, ...] = (2,)  # any of them ends a hypothesis; the first is the end of CTC

  def __post_init__(self):
    if self.method not in METHODS:
      raise UserError(
        f'decoding: method={self.method!r} is none of {METHODS}; did you mean {nearest(self.method, METHODS)!r}?'
      )
    least = {
      'max_length': 1,
      'min_length': 0,
      'beam_size': 1,
      'n_best': 1,
      'top_k': 0,
      'pad_id': 0,
      'bos_id': 0,
    }
    for ok, what in (
      *(
        (getattr(self, key) >= low, f'{key}={getattr(self, key)} must be at least {low}')
        for key, low in least.items()
      ),
      (
        self.min_length <= self.max_length,
        f'min_length={self.min_length} is more than max_length={self.max_length}',
      ),
      (
        self.n_best <= rows(self),
        f'n_best={self.n_best} is more than what is kept: beam_size={self.beam_size} with method beam, 1 with greedy',
      ),
      (self.temperature > 0, f'temperature={self.temperature} must be above 0; for 0 use greedy'),
      (0 < self.top_p <= 1, f'top_p={self.top_p} must lie in (0, 1]'),
      (
        self.method == 'sample' or (self.temperature, self.top_k, self.top_p) == (1.0, 0, 1.0),
        f'temperature, top_k and top_p need method sample, not {self.method}',
      ),
      (
        self.eos_ids and min(self.eos_ids) >= 0,
        f'eos_ids={self.eos_ids} must be one id or more, each at least 0',
      ),
    ):
      if not ok:
        raise UserError(f'decoding: {what}')


class SearchResult(NamedTuple):
  """The best first: those that ended by score, then those that max_length cut, by score. What could not be
  found (fewer sequences exist than were asked for) has length 0 and score -inf."""

  tokens: jax.Array  # [B, N, L] int32, without the prompt, the end token included, then padding
  lengths: jax.Array  # [B, N] int32, tokens generated, the end token counted
  scores: jax.Array  # [B, N] log_probs / length penalty
  log_probs: jax.Array  # [B, N] nats under the model itself (no temperature, top_k or top_p), or the sum of what a scored step gave


class Hypotheses(NamedTuple):
  tokens: jax.Array  # [B, K, L]
  lengths: jax.Array  # [B, K] tokens generated
  log_probs: jax.Array  # [B, K] -inf where there is none


class State(NamedTuple):
  position: jax.Array  # [] index, prompt included, of the token that the next step feeds
  feed: jax.Array  # [B, K] that token
  alive: jax.Array  # [B, K] still searched; one value an example under beams
  live: Hypotheses  # [B, K] what is extended; rows of greedy and sampling stay here when they end
  pool: Hypotheses  # [B, N] the best that have ended, best first; [B, 0] where there are no beams
  cache: Any


def rows(options: SearchOptions) -> int:
  """K: rows an example takes in the cache and in the step."""
  return {'greedy': 1, 'sample': options.n_best, 'beam': options.beam_size}[options.method]


def search(
  step,
  cache,
  options: SearchOptions,
  prompt,
  rng=None,
  prompt_length=None,
  active=None,
  *,
  scored=False,
  temperature=None,
) -> SearchResult:
  """Generates after `prompt` until nothing that is left could change the result.

  Args:
    step: (tokens [R], cache) -> (logits [R, V], cache). It closes over whatever all rows of an example share.
    cache: tree for R = B * rows(options) rows. Leaves whose first axis is R follow their hypotheses, all others
      are left alone. It must hold P + max_length - 1 positions.
    rng: `jax.random.key`, or [B] of them, which makes the draws of an example independent of the others.
      Key 0 when None.
    prompt: [B, P] int tokens, padded; a column of bos_id to start from nothing. Without the tokens that the cache holds already.
    prompt_length: [B], at least 1; P when None. An array, so that another length does not trace again.
    active: [B] bool; an example that is not gets length 0 and costs no step. All when None.
    scored: the step gives scores that are added as they are, none above 0, in place of logits.
    temperature: [B], instead of that of the options, so that another one does not trace again.
  """
  width = rows(options)
  prompt = jnp.asarray(prompt, jnp.int32)
  if prompt_length is None:
    prompt_length = jnp.full(len(prompt), prompt.shape[1])
  else:
    prompt_length = prompt_length
  if active is None:
    active = jnp.ones(len(prompt), bool)
  else:
    active = active
  beams = options.method == 'beam' and width > 1
  if options.method == 'sample':
    keys = _row_keys(rng, len(prompt), width)
  else:
    keys = None
  # [R, 1]
  if temperature is None:
    warmth = options.temperature
  else:
    warmth = jnp.repeat(temperature, width)[:, None]

  def body(state: State) -> State:
    logits, cache = step(state.feed.reshape(-1), state.cache)
    logits = logits.astype(jnp.float32)
    # [R]
    if scored:
      log_sums = jnp.zeros(len(logits))
    else:
      log_sums = jax.nn.logsumexp(logits, -1)
    given = (logits, log_sums, state, options)
    new, parents = _extend_beams(*given) if beams else _extend_rows(*given, keys, warmth)
    forced = (state.position + 1 < prompt_length)[:, None]  # [B, 1]
    hold = forced | ~state.alive  # [B, K]; the cache need not wait: its rows are equal or done with
    following = jnp.take(prompt, state.position + 1, axis=1, mode='clip')[:, None]
    return State(
      state.position + 1,
      jnp.where(forced, following, new.feed),
      jnp.where(hold, state.alive, new.alive),
      _where(hold, state.live, new.live),
      _where(hold[:, :1], state.pool, new.pool),
      _reorder(cache, parents) if beams else cache,
    )

  state = lax.while_loop(
    lambda s: s.alive.any(), body, _start(cache, prompt, active, options, beams)
  )
  return _result(state, options)


def is_any(tokens: jax.Array, ids: Sequence[int]) -> jax.Array:
  """Returns bools of the shape of `tokens`: where one of `ids` stands."""
  return functools.reduce(operator.or_, [tokens == i for i in ids])


def penalty(lengths, alpha: float):
  """((5 + length) / 6) ** alpha: Wu et al. (2016), equation 14."""
  return ((5.0 + lengths) / 6.0) ** alpha


def top_k(x: jax.Array, k: int, block: int = 32) -> tuple[jax.Array, jax.Array]:
  """`lax.top_k` of [R, V], ties to the lower index too.

  On the CPU the maxima of blocks are ranked first, then only the k best blocks, and what fills no block, are searched: twice
  as fast.
  """
  size, vocabulary = x.shape
  whole = vocabulary - vocabulary % block
  if jax.default_backend() != 'cpu' or whole < 2 * k * block:
    return lax.top_k(x, k)
  best = lax.top_k(
    x[:, :whole].reshape(size, -1, block).max(-1),
    k,
  )[1]  # [R, k]
  # In order of index, or equal values would be ranked by their block's maximum.
  where = (jnp.sort(best)[..., None] * block + jnp.arange(block)).reshape(
    size,
    -1,
  )
  where = jnp.concatenate(
    [where, jnp.broadcast_to(jnp.arange(whole, vocabulary), (size, vocabulary - whole))], 1
  )
  values, ranks = lax.top_k(jnp.take_along_axis(x, where, 1, mode='promise_in_bounds'), k)
  return values, jnp.take_along_axis(where, ranks, 1)


def nucleus(logits: jax.Array, top_p: float) -> jax.Array:
  """[R, C] with -inf outside the smallest set of likeliest entries that holds the mass top_p.

  Equals go together. The border is found by bisection: a sort takes 20 times as long on the CPU.
  """
  top = logits.max(-1, keepdims=True)
  mass = jax.nn.softmax(logits, -1)

  def halve(_, bounds):
    low, high = bounds  # the mass at or above `low` reaches top_p, that at or above `high` does not
    middle = (low + high) / 2
    enough = jnp.where(logits >= middle, mass, 0).sum(-1, keepdims=True) >= top_p
    return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

  low, _ = lax.fori_loop(0, 40, halve, (top - 100, top + 1))
  return jnp.where(logits >= low, logits, -jnp.inf)


def _start(cache, prompt, active, options, beams) -> State:
  batch = len(prompt)
  width = rows(options)

  def empty(n, log_probs):
    tokens = jnp.full((batch, n, options.max_length), options.pad_id, jnp.int32)
    return Hypotheses(
      tokens, jnp.zeros((batch, n), jnp.int32), jnp.broadcast_to(log_probs, (batch, n))
    )

  # All beams start equal: only the first may grow, or the same hypothesis would fill the beam.
  if beams:
    first = jnp.where(jnp.arange(width) > 0, -jnp.inf, 0.0)
  else:
    first = jnp.zeros(width)
  feed, alive = (
    jnp.broadcast_to(column, (batch, width)) for column in (prompt[:, :1], active[:, None])
  )
  pool = empty(options.n_best if beams else 0, -jnp.inf)
  return State(
    jnp.zeros((), jnp.int32),
    feed,
    alive,
    empty(width, first),
    pool,
    jax.tree.map(jnp.asarray, cache),
  )


def _extend_rows(logits, log_sums, state, options, keys, temperature) -> tuple[State, None]:
  """One token more for each row on its own: the likeliest, or one drawn with `keys` [R] at a temperature (one, or [R, 1])."""
  token, value = draw(logits, state.live.lengths.reshape(-1), options, keys, temperature)
  token = token.reshape(state.feed.shape)
  gain = value - log_sums
  live = _append(state.live, token, state.live.log_probs + gain.reshape(state.feed.shape))
  alive = ~is_any(token, options.eos_ids) & (live.lengths < options.max_length)
  return state._replace(feed=token, alive=alive, live=live), None


def draw(logits, lengths, options, keys=None, temperature=None) -> tuple[jax.Array, jax.Array]:
  """The likeliest token of each row, or one drawn with `keys` [R] at a temperature (one, or [R, 1]), and its logit: both [R].

  Args:
    logits: [R, V] float32.
    lengths: [R], tokens that each row has generated: another draw for each.
  """
  values, ids = _candidates(logits, 1 if keys is None else options.top_k, lengths, options)
  if keys is None:
    choice = jnp.zeros((len(logits), 1), jnp.int32)
  else:
    warm = values / temperature
    if options.top_p < 1:
      warm = nucleus(warm, options.top_p)
    else:
      warm = warm
    choice = jax.vmap(jax.random.categorical)(jax.vmap(jax.random.fold_in)(keys, lengths), warm)[
      :, None
    ]
  return tuple(jnp.take_along_axis(of, choice, 1)[:, 0] for of in (ids, values))


def _extend_beams(logits, log_sums, state, options) -> tuple[State, jax.Array]:
  """The K best ways to go on; those among the K best that end join the pool. Also the parents [B, K]."""
  batch, width = state.feed.shape
  # Of a row at most K go on and E end, one with each end token; of (1 + E) K candidates at most E K end,
  # so K are left to go on.
  ends_of_row = len(options.eos_ids)
  values, ids = _candidates(
    logits, min(width + ends_of_row, logits.shape[1]), state.live.lengths.reshape(-1), options
  )
  gains = values - log_sums[:, None]  # [R, C]
  totals = (state.live.log_probs[..., None] + gains.reshape(batch, width, -1)).reshape(
    batch, -1
  )  # [B, KC]
  log_probs, flat = lax.top_k(totals, min((1 + ends_of_row) * width, totals.shape[1]))  # [B, 2K]
  parents = flat // ids.shape[1]
  tokens = jnp.take_along_axis(ids.reshape(batch, -1), flat, 1)
  grown = _append(_pick(state.live, parents), tokens, log_probs)
  ends = is_any(tokens, options.eos_ids)

  ended = grown._replace(
    log_probs=jnp.where(ends & (jnp.arange(ends.shape[1]) < width), log_probs, -jnp.inf)
  )
  pool = jax.tree.map(lambda *x: jnp.concatenate(x, 1), state.pool, ended)
  pool = _pick(pool, lax.top_k(_scores(pool, options), options.n_best)[1])
  log_probs, kept = lax.top_k(jnp.where(ends, -jnp.inf, log_probs), width)
  live = _pick(grown, kept)._replace(log_probs=log_probs)

  # A log-probability only falls: the most it can score is with the largest penalty still ahead, which is at
  # one of the two ends because the penalty is monotone in the length.
  length = live.lengths[:, 0]
  ahead = jnp.maximum(
    *(penalty(n, options.length_penalty) for n in (length + 1, options.max_length))
  )
  open_ = (length < options.max_length) & (log_probs[:, 0] / ahead > _scores(pool, options)[:, -1])
  alive = jnp.broadcast_to(open_[:, None], kept.shape)
  return state._replace(feed=_at(tokens, kept), alive=alive, live=live, pool=pool), _at(
    parents, kept
  )


def _candidates(logits, k, lengths, options) -> tuple[jax.Array, jax.Array]:
  """The k best allowed logits of each row, best first, and their tokens [R, C]; all, unsorted, if k is 0."""
  forbidden = {options.pad_id, options.bos_id} - set(options.eos_ids)
  spare = len(forbidden) + len(
    options.eos_ids
  )  # to fetch what may be forbidden is cheaper than to mask the vocabulary
  vocabulary = logits.shape[1]
  if k == 0 or k >= vocabulary:
    values = logits
    ids = jnp.broadcast_to(jnp.arange(vocabulary), logits.shape)
  else:
    values, ids = top_k(logits, min(k + spare, vocabulary))
  bad = is_any(ids, options.eos_ids) & (lengths[:, None] + 1 < options.min_length)
  for token in forbidden:
    bad |= ids == token
  values = jnp.where(bad, -jnp.inf, values)
  if k == 0:
    return values, ids
  values, order = lax.top_k(values, min(k, vocabulary))
  return values, jnp.take_along_axis(ids, order, 1)


def _result(state, options) -> SearchResult:
  found = jax.tree.map(lambda *x: jnp.concatenate(x, 1), state.pool, state.live)
  scores = _scores(found, options)
  # An end token behind the end is padding of a vocabulary that pads with it.
  written = jnp.arange(found.tokens.shape[-1]) < found.lengths[..., None]
  ends = is_any(found.tokens, options.eos_ids) & written
  ended = ends.any(-1) & (found.log_probs > -jnp.inf)
  # What is missing is taken from the empty places of the pool, which stand before dead beams.
  best = jnp.lexsort((-scores, ~ended))[:, : options.n_best]
  tokens, lengths, log_probs = _pick(found, best)
  return SearchResult(tokens, lengths, _at(scores, best), log_probs)


def _row_keys(rng, batch, width) -> jax.Array:
  rng = jax.random.key(0) if rng is None else rng
  if rng.ndim:
    keys = rng
  else:
    keys = jax.vmap(jax.random.fold_in, (None, 0))(rng, jnp.arange(batch))
  return jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))(
    keys, jnp.arange(width)
  ).reshape(-1)


def _reorder(cache, parents):
  """Rows of [R, ...] from their parents [B, K]; a plain gather was the fastest of twelve ways on the CPU."""
  flat = (jnp.arange(len(parents))[:, None] * parents.shape[1] + parents).reshape(-1)

  def follows(x):
    return x.ndim and len(x) == len(flat)

  return jax.tree.map(
    lambda x: x.at[flat].get(mode='promise_in_bounds') if follows(x) else x, cache
  )


def _append(h: Hypotheses, token, log_probs) -> Hypotheses:
  here = jnp.arange(h.tokens.shape[-1]) == h.lengths[..., None]
  return Hypotheses(jnp.where(here, token[..., None], h.tokens), h.lengths + 1, log_probs)


def _scores(h: Hypotheses, options) -> jax.Array:
  return h.log_probs / penalty(h.lengths, options.length_penalty)


def _at(x, index):
  return jnp.take_along_axis(x, index.reshape(index.shape + (1,) * (x.ndim - 2)), 1)


def _pick(h: Hypotheses, index) -> Hypotheses:
  return Hypotheses(*(_at(x, index) for x in h))


def _where(mask, a: Hypotheses, b: Hypotheses) -> Hypotheses:
  return Hypotheses(
    *(
      jnp.where(
        mask.reshape(mask.shape + (1,) * (x.ndim - 2)),
        x,
        y,
      )
      for x, y in zip(a, b)
    )
  )
