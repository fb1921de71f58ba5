"""What Whisper may write next (Radford et al. 2022, 2.3 and 4.5): tokens that are never speech, and where times may stand.

A transcript with times is <time> text <time><time> text <time> ...: it starts with a time, times come in pairs but for the first and the
last, and never go back. Axes: R rows, V vocabulary, whose last ids are the times.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Rules:
  """What may be written; hashable, to be a static argument of `jax.jit`."""

  end: int  # the end token; text has lower ids
  first_time: int  # times are this and all higher ids
  times: bool = True  # the transcript has times; without, they follow no rule
  max_first_time: int = 50  # the transcript starts so many ticks after the window at most
  never: tuple[int, ...] = ()  # tokens that are never written
  not_first: tuple[int, ...] = ()  # tokens that are not written first


class Said(NamedTuple):
  """What each row [R] has written."""

  to_read: jax.Array  # tokens of the prompt that are still to be fed
  count: jax.Array  # tokens written
  last: jax.Array
  before: jax.Array  # the one before the last
  latest: jax.Array  # the last time, or first_time - 1


def nothing_said(prompt: jax.Array, rules: Rules) -> Said:
  """Before the first of `prompt` [R] tokens is fed."""
  zeros = jnp.zeros_like(prompt)
  return Said(prompt, zeros, zeros, zeros, jnp.full_like(prompt, rules.first_time - 1))


def heard(said: Said, tokens, rules: Rules) -> Said:
  """After `tokens` [R] were fed: the prompt's leave no mark."""
  own = said.to_read == 0
  time = own & (tokens >= rules.first_time)
  return Said(
    jnp.maximum(said.to_read - 1, 0),
    said.count + own,
    jnp.where(own, tokens, said.last),
    jnp.where(own, said.last, said.before),
    jnp.where(time, tokens, said.latest),
  )


def allowed(logits, said: Said, rules: Rules):
  """Logits [R, V] with -inf where a token may not follow."""
  ids = jnp.arange(logits.shape[-1])
  first = (said.count == 0)[:, None]
  banned = _marked(ids, rules.never) | (first & _marked(ids, rules.not_first))  # [R, V]
  if not rules.times:
    return jnp.where(banned, -jnp.inf, logits)
  time = ids >= rules.first_time
  after_time = (said.count > 0) & (said.last >= rules.first_time)
  after_text = (said.count > 1) & (said.before < rules.first_time)  # the last but one
  closed = (after_time & after_text)[:, None]  # a time that another one, or the end, must follow
  opened = (after_time & ~after_text)[:, None]  # a time that text, or the end, must follow
  # A pair is of two equal times; what has text between them takes a while.
  earliest = said.latest[:, None] + ~closed
  banned |= (closed & (ids < rules.end)) | (opened & time) | (time & (ids < earliest))
  banned |= first & (~time | (ids > rules.first_time + rules.max_first_time))
  logits = jnp.where(banned, -jnp.inf, logits)
  # All times together outweigh every text: then it is a time, whichever.
  mass = jax.nn.logsumexp(jnp.where(time, logits, -jnp.inf), -1, keepdims=True)
  text = jnp.where(time, -jnp.inf, logits).max(-1, keepdims=True)
  return jnp.where((mass > text) & ~time, -jnp.inf, logits)


def _marked(ids, tokens: tuple):
  """[V]: is an id one of these?"""
  return jnp.asarray(np.isin(np.arange(len(ids)), tokens))


def ruled(step, rules: Rules):
  """A step function (see search.py) that obeys; its cache is {'said': Said, 'inner': that of `step`}."""

  def obey(tokens, cache):
    said = heard(cache['said'], tokens, rules)
    logits, inner = step(tokens, cache['inner'])
    return allowed(logits, said, rules), {'said': said, 'inner': inner}

  return obey
