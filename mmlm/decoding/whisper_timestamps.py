"""Whisper's rules for the next token (Radford et al. 2022, 2.3 and 4.5).

A transcript with timestamps is <time> text <time><time> text <time> ...: it starts with a
timestamp, they come in pairs except the first and the last, and they never decrease.

Axes: R beams, V vocabulary, whose last ids are the timestamps.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mmlm.decoding.search import Cache, Step


@dataclasses.dataclass(frozen=True)
class Rules:
  """What may be generated; hashable, so that it can be a static argument of `jax.jit`."""

  eot: int  # the end of the transcript; text has lower ids
  timestamp_begin: int  # timestamps are this id and all higher ones
  without_timestamps: bool = False  # no rule is applied to timestamps
  max_initial_timestamp_index: int = 50  # the first timestamp, counted in steps of 0.02 s
  suppress_tokens: tuple[int, ...] = ()  # never generated
  suppress_at_begin: tuple[int, ...] = ()  # not generated as the first token


class Progress(NamedTuple):
  """What each beam [R] has generated."""

  prompt_left: Array  # tokens of the prompt that are still to be read
  count: Array  # generated tokens
  last: Array  # the last of them
  penultimate: Array  # the one before the last
  last_timestamp: Array  # timestamp_begin - 1 where there is none


def initial_progress(prompt_length: Array, rules: Rules) -> Progress:
  """Returns the progress before the first of `prompt_length` [R] tokens is read."""
  zeros = jnp.zeros_like(prompt_length)
  no_timestamp = jnp.full_like(prompt_length, rules.timestamp_begin - 1)
  return Progress(
    prompt_left=prompt_length,
    count=zeros,
    last=zeros,
    penultimate=zeros,
    last_timestamp=no_timestamp,
  )


def update(
  progress: Progress,
  tokens: Array,
  rules: Rules,
) -> Progress:
  """Returns the progress after `tokens` [R] were read; those of the prompt are not counted."""
  is_generated = progress.prompt_left == 0
  is_timestamp = is_generated & (tokens >= rules.timestamp_begin)
  return Progress(
    prompt_left=jnp.maximum(progress.prompt_left - 1, 0),
    count=progress.count + is_generated,
    last=jnp.where(is_generated, tokens, progress.last),
    penultimate=jnp.where(is_generated, progress.last, progress.penultimate),
    last_timestamp=jnp.where(is_timestamp, tokens, progress.last_timestamp),
  )


def apply_rules(
  logits: Array,
  progress: Progress,
  rules: Rules,
) -> Array:
  """Returns logits [R, V] with -inf where a token must not follow."""
  ids = jnp.arange(logits.shape[-1])
  is_first = (progress.count == 0)[:, None]
  suppressed = _is_one_of(ids, rules.suppress_tokens) | (
    is_first & _is_one_of(ids, rules.suppress_at_begin)
  )  # [R, V]
  if rules.without_timestamps:
    return jnp.where(suppressed, -jnp.inf, logits)
  is_timestamp = ids >= rules.timestamp_begin
  last_was_timestamp = (progress.count > 0) & (progress.last >= rules.timestamp_begin)
  penultimate_was_text = (progress.count > 1) & (progress.penultimate < rules.timestamp_begin)
  # A timestamp behind text must be followed by another one or the end; one behind a timestamp, or
  # the first one, by text or the end.
  closes = (last_was_timestamp & penultimate_was_text)[:, None]
  opens = (last_was_timestamp & ~penultimate_was_text)[:, None]
  # Two timestamps of a pair may be equal; what has text between them takes time.
  earliest = progress.last_timestamp[:, None] + ~closes
  suppressed |= closes & (ids < rules.eot)
  suppressed |= opens & is_timestamp
  suppressed |= is_timestamp & (ids < earliest)
  latest_first = rules.timestamp_begin + rules.max_initial_timestamp_index
  suppressed |= is_first & (~is_timestamp | (ids > latest_first))
  logits = jnp.where(suppressed, -jnp.inf, logits)
  # Where all timestamps together are more likely than any text token, the next is a timestamp.
  timestamp_logits = jnp.where(is_timestamp, logits, -jnp.inf)
  timestamp_mass = jax.nn.logsumexp(timestamp_logits, -1, keepdims=True)
  max_text = jnp.where(is_timestamp, -jnp.inf, logits).max(-1, keepdims=True)
  return jnp.where((timestamp_mass > max_text) & ~is_timestamp, -jnp.inf, logits)


def _is_one_of(ids: Array, tokens: tuple[int, ...]) -> Array:
  """Returns [V]: whether an id is one of the tokens."""
  return jnp.asarray(np.isin(np.arange(len(ids)), tokens))


def with_rules(step: Step, rules: Rules) -> Step:
  """Returns a step function (see search.py) that follows the rules.

  Its cache is {'progress': Progress, 'inner': the cache of `step`}.
  """

  def ruled_step(tokens: Array, cache: dict[str, Any]) -> tuple[Array, Cache]:
    progress = update(cache['progress'], tokens, rules)
    logits, inner = step(tokens, cache['inner'])
    return apply_rules(logits, progress, rules), {'progress': progress, 'inner': inner}

  return ruled_step
