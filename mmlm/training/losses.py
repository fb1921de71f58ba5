"""Losses over sequences, written so that the vocabulary axis is passed over as seldom as possible.

Axes: B batch, T time, V vocabulary.
"""

from functools import partial

import jax
import jax.numpy as jnp


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def cross_entropy(logits, targets, label_smoothing=0.0):
  """Cross-entropy in nats of targets [B, T] under logits [B, T, V] -> float32 [B, T].

  With smoothing e the target distribution is (1 - e) on the target plus e / V on every token (Szegedy et al. 2016, 7). The
  gradient, softmax(logits) minus that distribution, is written out: differentiating the gather would scatter into [B, T, V].
  """
  return _forward(logits, targets, label_smoothing)[0]


def _forward(logits, targets, label_smoothing):
  x = logits.astype(jnp.float32)
  log_sum = jax.nn.logsumexp(x, axis=-1)
  picked = jnp.take_along_axis(x, targets[..., None], axis=-1)[..., 0]
  loss = log_sum - (1 - label_smoothing) * picked
  if label_smoothing:
    loss = loss - label_smoothing * x.mean(-1)
  return loss, (logits, targets, log_sum)


def _backward(label_smoothing, saved, cotangent):
  logits, targets, log_sum = saved
  size = logits.shape[-1]
  hit = jnp.arange(size) == targets[..., None]
  soft = jnp.exp(logits.astype(jnp.float32) - log_sum[..., None])
  gradient = (soft - label_smoothing / size - jnp.where(hit, 1 - label_smoothing, 0)) * cotangent[..., None]
  return gradient.astype(logits.dtype), None


cross_entropy.defvjp(_forward, _backward)
