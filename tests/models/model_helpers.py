"""Inputs and parameters for tests of modules."""

import functools

import jax
import numpy as np

close = functools.partial(np.testing.assert_allclose, atol=2e-5, rtol=2e-5)


def normal(seed, *shape):
  """Returns standard normal values of a shape, float32."""
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def initial(module, *args, **kwargs):
  """Returns random parameters for inputs.

  Biases would start at 0 and scales at 1, where using them wrongly does not show.
  """
  init = functools.partial(module.init, **kwargs)
  shapes = jax.eval_shape(init, jax.random.key(0), *args)['params']

  def draw(path, x):
    seed = len(str(path)) + x.size
    mean = path[-1].key == 'scale'
    return mean + 0.3 * normal(seed, *x.shape)

  return jax.tree_util.tree_map_with_path(draw, shapes)


def apply_jitted(module, params, *args, **kwargs):
  """Applies a module in a compiled function."""
  return jax.jit(module.apply)({'params': params}, *args, **kwargs)
