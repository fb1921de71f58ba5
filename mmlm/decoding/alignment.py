"""Where in the frames of CTC each token of a text lies: the likeliest of all paths that write it (Viterbi).

Axes: B examples, S frames, V vocabulary, T tokens, U = 2 T + 1 labels of a path: the tokens with a blank before, between and behind them.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from mmlm.decoding.ctc import NEVER


class Alignment(NamedTuple):
  first: jax.Array  # [B, T] the first frame of each token, -1 where there is none
  last: jax.Array  # [B, T] and its last
  log_prob: jax.Array  # [B] of the path; NEVER or less where no path writes the text


def align(log_probs, tokens, lengths, blank: int = 0) -> Alignment:
  """The likeliest path of each text (Graves 2012, 7.3, with the maximum in place of the sum).

  A text that needs more frames than there are, one each and one between equals, has no token anywhere.

  Args:
    log_probs: [B, S, V], as `ctc.frame_log_probs` gives them: a masked frame is a certain blank.
    tokens: [B, T] without the blank; what stands behind the first `lengths` [B] of them is not read.
  """
  batch, frames, _ = log_probs.shape
  labels = (
    jnp.full(
      (batch, 2 * tokens.shape[1] + 1),
      blank,
      tokens.dtype,
    )
    .at[:, 1::2]
    .set(tokens)
  )  # [B, U]
  places = jnp.arange(labels.shape[1])
  before = jnp.pad(
    labels[:, :-2],
    ((0, 0), (2, 0)),
    constant_values=blank,
  )
  skips = (places % 2 == 1) & (labels != before)  # from token to token: not between equals

  def frame(best, log_probs):
    step, skip = (
      jnp.pad(
        best[:, :-n],
        ((0, 0), (n, 0)),
        constant_values=NEVER,
      )
      for n in (1, 2)
    )
    ways = jnp.stack([best, step, jnp.where(skips, skip, NEVER)])  # [3, B, U]
    return ways.max(0) + jnp.take_along_axis(
      log_probs,
      labels,
      1,
    ), ways.argmax(0).astype(jnp.int8)

  start = jnp.where(
    places == 0, 0.0, jnp.full(labels.shape, NEVER)
  )  # as after a blank before the first frame
  best, moves = lax.scan(frame, start, log_probs.swapaxes(0, 1))
  ends = jnp.stack(
    [2 * lengths, jnp.maximum(2 * lengths - 1, 0)], 1
  )  # a path ends in the last token or a blank behind it
  values = jnp.take_along_axis(best, ends, 1)
  here = jnp.take_along_axis(ends, values.argmax(1)[:, None], 1)[:, 0]

  def back(here, moves):
    return here - jnp.take_along_axis(moves, here[:, None], 1)[:, 0], here

  _, path = lax.scan(back, here, moves, reverse=True)  # [S, B]
  log_prob = values.max(1)
  token = jnp.where(
    (path % 2 == 1) & (log_prob > NEVER / 2), path // 2, tokens.shape[1]
  ).T  # [B, S], T for none
  rows = jnp.arange(batch)[:, None]
  at = jnp.arange(frames)
  found = jnp.full(tokens.shape, frames, jnp.int32)
  first = found.at[rows, token].min(at, mode='drop')
  last = jnp.full_like(found, -1).at[rows, token].max(at, mode='drop')
  return Alignment(jnp.where(last < 0, -1, first), last, log_prob)
