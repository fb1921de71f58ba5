"""Dropout that is cheap on every backend, features to a common scale, and the table of activations."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmlm.utils.traced import is_off, is_traced


class Dropout(nn.Module):
  """Inverted dropout (Srivastava et al. 2014) with 8 random bits a value.

  The rate, which may be traced, is rounded to a multiple of 1/256. Drawing a quarter of the 32-bit words and splitting them costs a third of
  `jax.random.bernoulli`, which is a quarter of a training step on a CPU. `shared` axes are dropped as one: the time of variational
  dropout (Gal & Ghahramani 2016), the values of a word of embedding dropout.
  """

  rate: float
  shared: tuple = ()

  @nn.compact
  def __call__(self, x, train: bool):
    if is_traced(self.rate):
      threshold = jnp.round(self.rate * 256)
    else:
      threshold = round(self.rate * 256)
    if not train or is_off(threshold):
      return x
    shape = tuple(1 if axis in self.shared else size for axis, size in enumerate(x.shape))
    size = math.prod(shape)
    words = jax.random.bits(self.make_rng('dropout'), (-(-size // 4),), jnp.uint32)
    octets = jax.lax.bitcast_convert_type(words, jnp.uint8).reshape(-1)[:size].reshape(shape)
    scale = 256 / (256 - threshold)
    if is_traced(threshold):
      threshold = threshold.astype(jnp.uint8)
      scale = scale.astype(x.dtype)
    return jnp.where(octets >= threshold, x * scale, 0).astype(x.dtype)


class Normalization(nn.Module):
  """Features [B, S, C] less their mean over the training examples, over their standard deviation there (global normalisation of mean and
  variance). Both are parameters that never learn; mmlm/experiment/initialization.py computes them.
  """

  @nn.compact
  def __call__(self, x):
    mean = self.param('mean', nn.initializers.zeros, x.shape[-1:])
    deviation = self.param('deviation', nn.initializers.ones, x.shape[-1:])
    return ((x - jax.lax.stop_gradient(mean)) / jax.lax.stop_gradient(deviation)).astype(x.dtype)


ACTIVATIONS = {
  'relu': nn.relu,
  'gelu': nn.gelu,
  'gelu_exact': functools.partial(nn.gelu, approximate=False),
  'silu': nn.silu,
}
