"""Cross-entropy of an output layer, in chunks that need little memory for logits; and CTC.

Axes: N tokens, C tokens of a chunk, D width, V vocabulary; of CTC: B batch, S frames, T labels.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from mmlm.parallel import batch_shards
from mmlm.utils.traced import is_off, is_traced

# Logits in memory at once: on a CPU they stay in its cache, on other devices a chunk must be large
# enough to be worth its launch.
LOGITS = {'cpu': 5 << 19}
_LOGITS_ELSEWHERE = 1 << 26

Smoothing = float | Array


def token_losses(
  x: Array,
  table: Array,
  targets: Array,
  label_smoothing: Smoothing = 0.0,
) -> Array:
  """Returns the cross-entropy in nats of each target, [N] float32.

  The logits are x table^T. With smoothing e the target distribution is (1 - e) on the target plus
  e / V on every token (Szegedy et al. 2016, 7).

  Args:
    x: hidden states [N, D].
    table: output layer [V, D].
    targets: [N].
  """
  log_sums = jax.lax.map(lambda chunk: _softmax(table, *chunk)[0], _chunks(len(table), x))
  target_vectors = _target_vectors(table, targets, label_smoothing)
  target_logits = (target_vectors * x.astype(jnp.float32)).sum(-1)
  return _joined(log_sums, len(x)) - target_logits


def summed_loss(
  x: Array,
  table: Array,
  targets: Array,
  weights: Array,
  label_smoothing: Smoothing = 0.0,
) -> Array:
  """Returns the sum of `token_losses` times weights [N].

  Its gradient is computed in the same pass, chunk by chunk, and is not differentiable again;
  weights, targets and the smoothing, which may be traced, have none.
  """
  if is_traced(label_smoothing):
    return _summed_loss(x, table, targets, weights, label_smoothing, 0.0)
  return _summed_loss(x, table, targets, weights, None, label_smoothing)


def _smoothing(traced: Array | None, static: float) -> Smoothing:
  return static if traced is None else traced


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def _summed_loss(
  x: Array,
  table: Array,
  targets: Array,
  weights: Array,
  traced: Array | None,
  static: float,
) -> Array:
  return (token_losses(x, table, targets, _smoothing(traced, static)) * weights).sum()


def _forward(
  x: Array,
  table: Array,
  targets: Array,
  weights: Array,
  traced: Array | None,
  static: float,
) -> tuple[Array, tuple[Array, Array]]:
  label_smoothing = _smoothing(traced, static)

  def step(grad_table: Array, chunk: tuple) -> tuple[Array, tuple]:
    x, weights = chunk
    log_sum, probabilities = _softmax(table, x)
    weighted = (probabilities * weights).astype(x.dtype)
    grad_x = jnp.einsum(
      'vc,vd->cd', weighted, table.astype(x.dtype), preferred_element_type=jnp.float32
    )
    grad = jnp.einsum('vc,cd->vd', weighted, x, preferred_element_type=jnp.float32)
    return grad_table + grad, (log_sum, grad_x)

  zeros = jnp.zeros(table.shape, jnp.float32)
  grad_table, (log_sums, grad_x) = jax.lax.scan(step, zeros, _chunks(len(table), x, weights))
  log_sums = _joined(log_sums, len(x))
  grad_x = _joined(grad_x, len(x))
  # The gradient is that of the softmax, which the loop has summed, less that of the target
  # distribution: one vector of the table a token, and for smoothing the same for every vector.
  target_vectors = _target_vectors(table, targets, label_smoothing)
  weighted_x = x.astype(jnp.float32) * weights[:, None]
  total = (log_sums * weights).sum() - (target_vectors * weighted_x).sum()
  grad_table = grad_table.at[targets].add((label_smoothing - 1) * weighted_x)
  grad_table = grad_table - label_smoothing / len(table) * weighted_x.sum(0)
  grad_x = (grad_x - target_vectors * weights[:, None]).astype(x.dtype)
  return total, (grad_x, grad_table.astype(table.dtype))


def _backward(
  static: float,
  gradients: tuple[Array, Array],
  cotangent: Array,
) -> tuple[Any, ...]:
  grad_x, grad_table = gradients
  grad_x = grad_x * cotangent.astype(grad_x.dtype)
  grad_table = grad_table * cotangent.astype(grad_table.dtype)
  return grad_x, grad_table, None, None, None


_summed_loss.defvjp(_forward, _backward)


def _target_vectors(
  table: Array,
  targets: Array,
  label_smoothing: Smoothing,
) -> Array:
  """Returns the mean vector of the table under the target distribution of each token, [N, D]."""
  vectors = jnp.take(table, targets, axis=0)
  if is_off(label_smoothing):
    return vectors
  return (1 - label_smoothing) * vectors + label_smoothing * table.mean(0)


def _softmax(table: Array, x: Array) -> tuple[Array, Array]:
  """Returns the log of the sum of exponentials [C], and softmax [V, C], of tokens x [C, D].

  The vocabulary is the first axis: a CPU vectorises sums along columns.
  """
  logits = jnp.einsum('vd,cd->vc', table.astype(x.dtype), x, preferred_element_type=jnp.float32)
  largest = logits.max(0)
  exponentials = jnp.exp(logits - largest)
  total = exponentials.sum(0)
  return jnp.log(total) + largest, exponentials / total


def _chunks(vocab_size: int, *arrays: Array) -> tuple[Array, ...]:
  """Splits arrays [N, ...] into chunks [., C, ...], the last filled with zeros."""
  number = len(arrays[0])
  parts = batch_shards()
  limit = parts * LOGITS.get(jax.default_backend(), _LOGITS_ELSEWHERE)
  count = max(1, -(-number * vocab_size // limit))
  size = -(-number // (count * parts)) * parts

  def fill(a: Array) -> Array:
    other_axes = [(0, 0)] * (a.ndim - 1)
    return jnp.pad(a, [(0, count * size - number), *other_axes])

  # On several devices every chunk takes tokens of each: a loop over devices would leave the others
  # idle.
  def split(a: Array) -> Array:
    if parts == 1:
      return a.reshape(count, size, *a.shape[1:])
    return a.reshape(size, count, *a.shape[1:]).swapaxes(0, 1)

  return tuple(split(fill(array)) for array in arrays)


def _joined(chunks: Array, number: int) -> Array:
  """Joins [., C, ...], the chunks of an array, to [N, ...]."""
  if batch_shards() > 1:
    chunks = chunks.swapaxes(0, 1)
  return chunks.reshape(-1, *chunks.shape[2:])[:number]


def ctc_losses(
  logits: Array,
  frames_mask: Array,
  labels: Array,
  labels_mask: Array,
  blank_id: int = 0,
) -> tuple[Array, Array]:
  """Returns the negative log-probability in nats of labels under CTC, and their number: [B], [B].

  Graves et al. 2006, eq. 14. Both are 0 for an example without labels, and for one whose labels do
  not fit in its frames, whose loss would be infinite.

  Args:
    logits: [B, S, V] float32.
    frames_mask: [B, S], padding at the end.
    labels: [B, T], none of them blank.
    labels_mask: [B, T], padding at the end.
  """
  losses = optax.ctc_loss(logits, 1.0 - frames_mask, labels, 1.0 - labels_mask, blank_id=blank_id)
  # A blank must be between equal labels.
  repeats = (labels[:, 1:] == labels[:, :-1]) & labels_mask[:, 1:]
  labels_count = labels_mask.sum(1)
  needed_frames = labels_count + repeats.sum(1)
  counts = jnp.where(needed_frames <= frames_mask.sum(1), labels_count, 0)
  return jnp.where(counts > 0, losses, 0), counts
