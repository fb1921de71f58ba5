"""Cross-entropy of a linear layer over a vocabulary, a few tokens at a time: the logits of a batch never stand in memory at once; and CTC.

Axes: N tokens, C tokens of a chunk, D width, V vocabulary; of CTC: B batch, S frames, T labels.
"""

from functools import partial

import jax
import jax.numpy as jnp
import optax

from mmlm.parallel import batch_shards
from mmlm.utils.traced import is_off, is_traced

# Logits that stand in memory at once: on a CPU they stay in its cache, on others a chunk must be worth its start.
LOGITS = {'cpu': 5 << 19}
_LOGITS_ELSEWHERE = 1 << 26


def token_losses(x, table, targets, label_smoothing=0.0):
  """Cross-entropy in nats of targets [N] under the logits x [N, D] table [V, D]^T -> float32 [N].

  With smoothing e the target distribution is (1 - e) on the target plus e / V on every token (Szegedy et al. 2016, 7).
  """
  log_sums = jax.lax.map(
    lambda part: _softmax(table, *part)[0],
    _chunks(len(table), x),
  )
  return _joined(log_sums, len(x)) - (
    _wanted(table, targets, label_smoothing) * x.astype(jnp.float32)
  ).sum(-1)


def summed_loss(x, table, targets, weights, label_smoothing=0.0):
  """The sum of `token_losses` times weights [N], a scalar. Its gradient is computed on the way, chunk by chunk, and is not
  differentiable again; weights, targets and the smoothing, which may be traced, have none.
  """
  static, traced = (0.0, label_smoothing) if is_traced(label_smoothing) else (label_smoothing, None)
  return _summed_loss(x, table, targets, weights, traced, static)


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def _summed_loss(x, table, targets, weights, traced, static):
  return (token_losses(x, table, targets, static if traced is None else traced) * weights).sum()


def _forward(x, table, targets, weights, traced, static):
  if traced is None:
    label_smoothing = static
  else:
    label_smoothing = traced

  def step(grad_table, part):
    x, weights = part
    log_sum, soft = _softmax(table, x)
    soft = (soft * weights).astype(x.dtype)
    grad_x = jnp.einsum(
      'vc,vd->cd', soft, table.astype(x.dtype), preferred_element_type=jnp.float32
    )
    return grad_table + jnp.einsum('vc,cd->vd', soft, x, preferred_element_type=jnp.float32), (
      log_sum,
      grad_x,
    )

  grad_table, found = jax.lax.scan(
    step, jnp.zeros(table.shape, jnp.float32), _chunks(len(table), x, weights)
  )
  log_sums, grad_x = (_joined(part, len(x)) for part in found)
  # The gradient is that of the softmax, which the loop has summed, less that of the target distribution: one row of the table a
  # token, and for smoothing the same for every row.
  wanted = _wanted(table, targets, label_smoothing)
  weighted = x.astype(jnp.float32) * weights[:, None]
  total = (log_sums * weights).sum() - (wanted * weighted).sum()
  grad_table = grad_table.at[targets].add((label_smoothing - 1) * weighted) - label_smoothing / len(
    table
  ) * weighted.sum(0)
  return total, (
    (grad_x - wanted * weights[:, None]).astype(x.dtype),
    grad_table.astype(table.dtype),
  )


def _backward(static, gradients, cotangent):
  grad_x, grad_table = gradients
  return (
    grad_x * cotangent.astype(grad_x.dtype),
    grad_table * cotangent.astype(grad_table.dtype),
    None,
    None,
    None,
  )


_summed_loss.defvjp(_forward, _backward)


def _wanted(table, targets, label_smoothing):
  """[N, D]: the mean row of the table under the target distribution of each token."""
  rows = jnp.take(table, targets, axis=0)
  if is_off(label_smoothing):
    return rows
  return (1 - label_smoothing) * rows + label_smoothing * table.mean(0)


def _softmax(table, x):
  """Log of the sum of exponentials [C], and softmax [V, C], of the tokens x [C, D].

  The vocabulary is the first axis: a CPU vectorises sums along columns, not along rows.
  """
  logits = jnp.einsum('vd,cd->vc', table.astype(x.dtype), x, preferred_element_type=jnp.float32)
  largest = logits.max(0)
  soft = jnp.exp(logits - largest)
  total = soft.sum(0)
  return jnp.log(total) + largest, soft / total


def _chunks(vocabulary: int, *arrays):
  """Arrays [N, ...] in chunks [., C, ...], the last filled with zeros."""
  number = len(arrays[0])
  parts = batch_shards()
  count = max(
    1, -(-number * vocabulary // (parts * LOGITS.get(jax.default_backend(), _LOGITS_ELSEWHERE)))
  )
  size = -(-number // (count * parts)) * parts

  def fill(a):
    return jnp.pad(
      a,
      [(0, count * size - number)] + [(0, 0)] * (a.ndim - 1),
    )

  # Where the tokens lie on several devices, every chunk takes some of each: a loop over devices would leave the others idle.
  def split(a):
    if parts == 1:
      return a.reshape(count, size, *a.shape[1:])
    return a.reshape(size, count, *a.shape[1:]).swapaxes(0, 1)

  return tuple(split(fill(array)) for array in arrays)


def _joined(chunks, number: int):
  """[., C, ...], the chunks of arrays [N, ...], as one such array."""
  if batch_shards() == 1:
    chunks = chunks
  else:
    chunks = chunks.swapaxes(0, 1)
  return chunks.reshape(-1, *chunks.shape[2:])[:number]


def ctc_losses(logits, frames, labels, labels_mask, blank: int = 0):
  """Negative log-probability in nats of labels [B, T] under CTC (Graves et al. 2006, eq. 14), and how many labels it is of: [B] and [B].

  Both are 0 for an example without labels, and for one whose labels its frames cannot hold: a loss of infinity would teach nothing.

  Args:
    logits: [B, S, V] float32; `frames` [B, S] says where there are any, padding at the end.
    labels_mask: [B, T], padding at the end; no label is the blank.
  """
  losses = optax.ctc_loss(logits, 1.0 - frames, labels, 1.0 - labels_mask, blank_id=blank)
  repeats = (labels[:, 1:] == labels[:, :-1]) & labels_mask[
    :, 1:
  ]  # a blank must stand between equals
  count = labels_mask.sum(1)
  counts = jnp.where(count + repeats.sum(1) <= frames.sum(1), count, 0)
  return jnp.where(counts > 0, losses, 0), counts
