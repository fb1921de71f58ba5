"""A small n-gram model of token ids as two tables, so that a search asks it by indexing alone.

Interpolated Witten-Bell (Witten & Bell 1991, method C; Chen & Goodman 1999, 2.5): with n(h) tokens seen after the history h, T(h)
different ones among them, and the history h' that lacks the first token of h,

    p(w | h) = (n(h, w) + T(h) p(w | h')) / (n(h) + T(h)),   and before all histories every token is as likely.

Axes: H histories, V vocabulary, R decoding rows.
"""

import collections
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from mmlm.decoding.search import SearchOptions, rows
from mmlm.utils.errors import UserError

MOST_ENTRIES = 1 << 26  # of one table


class NgramTables(NamedTuple):
  """`log_probs[h, w]` in nats and `following[h, w]`, the history after w; history 0 is the empty one."""

  log_probs: np.ndarray  # [H, V] float32; -inf for padding and the start, which are never written
  following: np.ndarray  # [H, V] int32


def train_ngram(
  texts: list[list[int]], order: int, vocab_size: int, options: SearchOptions
) -> NgramTables:
  """The model of texts of token ids, each with its end token; a text starts after `options.bos_id`.

  Raises UserError when the tables would be too large: there are as many rows as different histories.
  """
  counts: dict[tuple, collections.Counter] = collections.defaultdict(collections.Counter)
  for text in texts:
    tokens = (options.bos_id, *text)
    for i in range(1, len(tokens)):
      for start in range(max(0, i - order + 1), i + 1):
        counts[tokens[start:i]][tokens[i]] += 1
  histories = sorted(counts, key=lambda history: (len(history), history))
  if len(histories) * vocab_size > MOST_ENTRIES:
    raise UserError(
      f'decoding.ngram={order}: {len(histories):,} histories of a vocabulary of {vocab_size:,} are more than {MOST_ENTRIES:,} entries. '
      'Choose a lower order or a tokenizer with fewer pieces.'
    )
  number = {history: i for i, history in enumerate(histories)}
  unwritten = {options.pad_id, options.bos_id} - set(options.eos_ids)
  written = ~np.isin(np.arange(vocab_size), list(unwritten))
  probs = np.empty((len(histories), vocab_size), np.float32)
  following = np.empty((len(histories), vocab_size), np.int32)
  for i, history in enumerate(histories):
    seen = counts[history]
    if history:
      lower = probs[number[history[1:]]]
    else:
      lower = written / written.sum()
    row = len(seen) * lower
    row[list(seen)] += list(seen.values())
    probs[i] = row / (seen.total() + len(seen))
    following[i] = following[number[history[1:]]] if history else 0
    # Where the history with one token more is no history, that of its end follows.
    for token in (*seen, options.bos_id):
      longer = (*history, token)
      if longer in number:
        following[i, token] = number[longer]
  with np.errstate(divide='ignore'):
    return NgramTables(np.log(probs), following)


def begin_ngram(tables: NgramTables, examples: int, options: SearchOptions):
  """(step, cache, scored) of a search; see decoding/score_fusion.py."""

  def step(tokens, state):
    state = tables.following[state, tokens]
    return jnp.maximum(
      tables.log_probs[state], -1e30
    ), state  # finite: a weight times it is never NaN

  return step, jnp.zeros(examples * rows(options), jnp.int32), True
