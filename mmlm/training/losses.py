"""Cross-entropy of a linear layer over a vocabulary, a few tokens at a time: the logits of a batch never stand in memory at once.

Axes: N tokens, C tokens of a chunk, D width, V vocabulary.
"""

from functools import partial

import jax
import jax.numpy as jnp

# Logits that stand in memory at once: on a CPU they stay in its cache, on others a chunk must be worth its start.
LOGITS = {'cpu': 5 << 19}
_LOGITS_ELSEWHERE = 1 << 26


def token_losses(x, table, targets, label_smoothing=0.0):
  """Cross-entropy in nats of targets [N] under the logits x [N, D] table [V, D]^T -> float32 [N].

  With smoothing e the target distribution is (1 - e) on the target plus e / V on every token (Szegedy et al. 2016, 7).
  """
  losses = jax.lax.map(lambda part: _chunk(table, *part, label_smoothing)[0], _chunks(table, x, targets))
  return losses.reshape(-1)[: len(x)]


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def summed_loss(x, table, targets, weights, label_smoothing=0.0):
  """The sum of `token_losses` times weights [N], a scalar. Its gradient is computed on the way, chunk by chunk, and is not
  differentiable again; weights and targets have none.
  """
  return (token_losses(x, table, targets, label_smoothing) * weights).sum()


def _forward(x, table, targets, weights, label_smoothing):
  def step(carry, part):
    total, grad_table = carry
    x, targets, weights = part
    losses, soft = _chunk(table, x, targets, label_smoothing)
    soft = (soft * weights).astype(x.dtype)
    grad_x = jnp.einsum('vc,vd->cd', soft, table.astype(x.dtype), preferred_element_type=jnp.float32)
    grad_table += jnp.einsum('vc,cd->vd', soft, x, preferred_element_type=jnp.float32)
    return (total + (losses * weights).sum(), grad_table), grad_x

  start = jnp.zeros((), jnp.float32), jnp.zeros(table.shape, jnp.float32)
  (total, grad_table), grad_x = jax.lax.scan(step, start, _chunks(table, x, targets, weights))
  # Softmax minus the target distribution: what is left of the latter is one row a token and the same for every row of the table.
  weighted, everywhere = x.astype(jnp.float32) * weights[:, None], label_smoothing / len(table)
  told = (1 - label_smoothing) * jnp.take(table, targets, axis=0) + everywhere * table.sum(0)
  grad_x = grad_x.reshape(-1, x.shape[1])[: len(x)] - told * weights[:, None]
  grad_table = grad_table.at[targets].add((label_smoothing - 1) * weighted) - everywhere * weighted.sum(0)
  return total, (grad_x.astype(x.dtype), grad_table.astype(table.dtype))


def _backward(label_smoothing, gradients, cotangent):
  grad_x, grad_table = gradients
  return grad_x * cotangent.astype(grad_x.dtype), grad_table * cotangent.astype(grad_table.dtype), None, None


summed_loss.defvjp(_forward, _backward)


def _chunk(table, x, targets, label_smoothing):
  """Losses [C] and softmax [V, C] of the tokens x [C, D].

  The vocabulary is the first axis: a CPU vectorises sums along columns, not along rows.
  """
  logits = jnp.einsum('vd,cd->vc', table.astype(x.dtype), x, preferred_element_type=jnp.float32)
  largest = logits.max(0)
  soft = jnp.exp(logits - largest)
  total = soft.sum(0)
  told = (1 - label_smoothing) * jnp.take(table, targets, axis=0) + label_smoothing * table.mean(0)
  return jnp.log(total) + largest - (told * x.astype(jnp.float32)).sum(-1), soft / total


def _chunks(table, x, *others):
  """x [N, D] and arrays [N] in chunks [., C, ...], the last filled with zeros."""
  most = LOGITS.get(jax.default_backend(), _LOGITS_ELSEWHERE)
  count = max(1, -(-len(x) * len(table) // most))
  size = -(-len(x) // count)
  split = lambda a: jnp.pad(a, [(0, count * size - len(a))] + [(0, 0)] * (a.ndim - 1)).reshape(count, size, *a.shape[1:])
  return tuple(map(split, (x, *others)))
