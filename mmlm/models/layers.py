"""Dropout that is cheap on every backend, normalization of features, and activations by name."""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from mmlm.utils.traced import is_off, is_traced

WORD_BYTES = 4


class Dropout(nn.Module):
  """Inverted dropout (Srivastava et al. 2014) with 8 random bits a value.

  The rate, which may be traced, is rounded to a multiple of 1/256. Drawing 32-bit words and
  splitting them costs a third of `jax.random.bernoulli`, which is a quarter of a training step on a
  CPU. `shared` axes are dropped as one: time for variational dropout (Gal & Ghahramani 2016), the
  values of a word for embedding dropout.
  """

  rate: float | Array
  shared: tuple = ()

  @nn.compact
  def __call__(self, x: Array, train: bool) -> Array:
    threshold = self._threshold()
    if not train or is_off(threshold):
      return x
    random_bytes = self._random_bytes(x.shape)
    scale = 256 / (256 - threshold)
    if is_traced(threshold):
      threshold = threshold.astype(jnp.uint8)
      scale = scale.astype(x.dtype)
    return jnp.where(random_bytes >= threshold, x * scale, 0).astype(x.dtype)

  def _threshold(self) -> Any:
    """Returns the rate in 256ths, an integer or traced."""
    if is_traced(self.rate):
      return jnp.round(self.rate * 256)
    return round(self.rate * 256)

  def _random_bytes(self, shape: tuple[int, ...]) -> Array:
    shape = tuple(1 if axis in self.shared else size for axis, size in enumerate(shape))
    size = math.prod(shape)
    count = -(-size // WORD_BYTES)
    words = jax.random.bits(self.make_rng('dropout'), (count,), jnp.uint32)
    random_bytes = jax.lax.bitcast_convert_type(words, jnp.uint8)
    return random_bytes.reshape(-1)[:size].reshape(shape)


class Normalization(nn.Module):
  """Global mean and variance normalization of features [B, S, C].

  The mean and the standard deviation are those of the training examples. Both are parameters that
  are never trained; mmlm/experiment/initialization.py computes them.
  """

  @nn.compact
  def __call__(self, x: Array) -> Array:
    mean = self.param('mean', nn.initializers.zeros, x.shape[-1:])
    deviation = self.param('deviation', nn.initializers.ones, x.shape[-1:])
    centred = x - jax.lax.stop_gradient(mean)
    return (centred / jax.lax.stop_gradient(deviation)).astype(x.dtype)


ACTIVATIONS = {
  'relu': nn.relu,
  'gelu': nn.gelu,
  'gelu_exact': functools.partial(nn.gelu, approximate=False),
  'silu': nn.silu,
}
