"""Alignment of tokens with the frames of CTC: the most likely path that writes a text (Viterbi).

Axes: B examples, S frames, V vocabulary, T tokens, U = 2 T + 1 states of a path: the tokens, with a
blank before, between and behind them.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from mmlm.decoding.ctc import LOG_ZERO


class Alignment(NamedTuple):
  first: Array  # [B, T] the first frame of each token, -1 where it has none
  last: Array  # [B, T] its last frame
  log_prob: Array  # [B] of the path; LOG_ZERO or less where no path writes the text


def align(
  log_probs: Array,
  tokens: Array,
  lengths: Array,
  blank: int = 0,
) -> Alignment:
  """Returns the most likely path of each text (Graves 2012, 7.3, with the maximum for the sum).

  A text needs one frame a token, and one more between equal tokens. Where there are fewer frames,
  no token has any.

  Args:
    log_probs: [B, S, V], as `ctc.frame_log_probs` gives them: a masked frame is a certain blank.
    tokens: [B, T] without blanks; those behind the first `lengths` [B] are not read.
  """
  batch, frames, _ = log_probs.shape
  longest = tokens.shape[1]
  labels = (
    jnp.full(
      (batch, 2 * longest + 1),
      blank,
      tokens.dtype,
    )
    .at[:, 1::2]
    .set(tokens)
  )  # [B, U]
  best, moves = _best_paths(log_probs, labels, blank)
  # A path ends in the last token, or in the blank behind it.
  ends = jnp.stack(
    [2 * lengths, jnp.maximum(2 * lengths - 1, 0)],
    1,
  )  # [B, 2]
  log_prob_of_end = jnp.take_along_axis(best, ends, 1)
  end = _pick_one(ends, log_prob_of_end.argmax(1))
  path = _trace_back(end, moves)  # [S, B]
  log_prob = log_prob_of_end.max(1)
  in_token = (path % 2 == 1) & (log_prob > LOG_ZERO / 2)
  token_of_frame = jnp.where(in_token, path // 2, longest).T  # [B, S], `longest` for none
  example = jnp.arange(batch)[:, None]
  frame = jnp.arange(frames)
  first = jnp.full(tokens.shape, frames, jnp.int32)
  last = jnp.full_like(first, -1)
  first = first.at[example, token_of_frame].min(frame, mode='drop')
  last = last.at[example, token_of_frame].max(frame, mode='drop')
  return Alignment(
    first=jnp.where(last < 0, -1, first),
    last=last,
    log_prob=log_prob,
  )


def _best_paths(
  log_probs: Array,
  labels: Array,
  blank: int,
) -> tuple[Array, Array]:
  """Returns the log-probability of the best path to each state at the end [B, U], and its moves.

  Moves [S, B, U] say by how many states a path advanced into a state at a frame: 0, 1 or 2.
  """
  states = jnp.arange(labels.shape[1])
  label_before_blank = jnp.pad(
    labels[:, :-2],
    ((0, 0), (2, 0)),
    constant_values=blank,
  )
  # From token to token without a blank, unless the two are equal.
  may_skip = (states % 2 == 1) & (labels != label_before_blank)

  def advance(best: Array, log_probs: Array) -> tuple[Array, Array]:
    step = jnp.pad(
      best[:, :-1],
      ((0, 0), (1, 0)),
      constant_values=LOG_ZERO,
    )
    skip = jnp.pad(
      best[:, :-2],
      ((0, 0), (2, 0)),
      constant_values=LOG_ZERO,
    )
    ways = jnp.stack([best, step, jnp.where(may_skip, skip, LOG_ZERO)])  # [3, B, U]
    emitted = jnp.take_along_axis(log_probs, labels, 1)
    return ways.max(0) + emitted, ways.argmax(0).astype(jnp.int8)

  # As after a blank before the first frame.
  start = jnp.where(states == 0, 0.0, jnp.full(labels.shape, LOG_ZERO))
  return lax.scan(advance, start, log_probs.swapaxes(0, 1))


def _trace_back(end: Array, moves: Array) -> Array:
  """Returns the state at each frame [S, B] of the paths that end in the states `end` [B]."""

  def back(state: Array, moves: Array) -> tuple[Array, Array]:
    move = _pick_one(moves, state)
    return state - move, state

  _, path = lax.scan(back, end, moves, reverse=True)
  return path


def _pick_one(x: Array, index: Array) -> Array:
  """Returns the value at `index` [B] of each row of x [B, U]: [B]."""
  return jnp.take_along_axis(x, index[:, None], 1)[:, 0]
