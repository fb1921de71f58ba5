"""A small n-gram model of token ids as two tables, in which a search looks scores up by index.

Interpolated Witten-Bell (Witten & Bell 1991, method C; Chen & Goodman 1999, 2.5). With n(h) tokens
seen after the history h, T(h) different ones among them, and h' the history without its first
token,

    p(w | h) = (n(h, w) + T(h) p(w | h')) / (n(h) + T(h)),

and below the empty history every token is as likely.

Axes: H histories, V vocabulary, R beams.
"""

import collections
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from mmlm.decoding.search import Step
from mmlm.decoding.search_options import SearchOptions
from mmlm.utils.errors import UserError

LARGEST_TABLE = 1 << 26  # entries
SMALLEST_LOG_PROB = -1e30  # finite: a weight times it is never NaN

History = tuple[int, ...]


class NgramTables(NamedTuple):
  """History 0 is the empty one."""

  log_probs: np.ndarray  # [H, V] float32 in nats; -inf for padding and the begin token
  next_history: np.ndarray  # [H, V] int32: the history after a token


def train_ngram(
  texts: list[list[int]],
  order: int,
  vocab_size: int,
  options: SearchOptions,
) -> NgramTables:
  """Trains on texts of token ids, each with its end token; a text starts after `options.bos_id`.

  Raises:
    UserError: the tables would be too large; they have one entry a history and token.
  """
  counts = _count(texts, order, options.bos_id)
  histories = sorted(counts, key=lambda history: (len(history), history))
  if len(histories) * vocab_size > LARGEST_TABLE:
    raise UserError(
      f'decoding.ngram={order}: {len(histories):,} histories of a vocabulary of {vocab_size:,} are '
      f'more than {LARGEST_TABLE:,} entries. Choose a lower order or a tokenizer with fewer pieces.'
    )
  number = {history: i for i, history in enumerate(histories)}
  never_written = {options.pad_id, options.bos_id} - set(options.eos_ids)
  is_written = ~np.isin(np.arange(vocab_size), list(never_written))
  uniform = is_written / is_written.sum()
  probs = np.empty((len(histories), vocab_size), np.float32)
  next_history = np.empty((len(histories), vocab_size), np.int32)
  for i, history in enumerate(histories):
    seen = counts[history]
    shorter = number[history[1:]]
    lower_probs = probs[shorter] if history else uniform
    expected = len(seen) * lower_probs
    expected[list(seen)] += list(seen.values())
    probs[i] = expected / (seen.total() + len(seen))
    # Where the history with one token more was never seen, its longest seen suffix is the next one.
    next_history[i] = next_history[shorter] if history else 0
    for token in (*seen, options.bos_id):
      longer = (*history, token)
      if longer in number:
        next_history[i, token] = number[longer]
  with np.errstate(divide='ignore'):
    return NgramTables(np.log(probs), next_history)


def _count(
  texts: list[list[int]],
  order: int,
  bos_id: int,
) -> dict[History, collections.Counter[int]]:
  """Returns how often each token follows each history of at most `order - 1` tokens."""
  counts = collections.defaultdict(collections.Counter)
  for text in texts:
    tokens = (bos_id, *text)
    for i in range(1, len(tokens)):
      for start in range(max(0, i - order + 1), i + 1):
        history = tokens[start:i]
        counts[history][tokens[i]] += 1
  return counts


def begin_ngram(
  tables: NgramTables,
  examples: int,
  options: SearchOptions,
) -> tuple[Step, Array, bool]:
  """Returns (step, cache, scored) of a search; see score_fusion.py."""

  def step(tokens: Array, history: Array) -> tuple[Array, Array]:
    history = tables.next_history[history, tokens]
    return jnp.maximum(tables.log_probs[history], SMALLEST_LOG_PROB), history

  return step, jnp.zeros(examples * options.beams, jnp.int32), True
