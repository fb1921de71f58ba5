"""Encoders of pictures, text and features: shapes, masks, padding.

Axes: B batch, S sequence, D width, V vocabulary.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_helpers import close, initial, normal

from mmlm.models.encoders.feature_encoders import FeatureRecurrent
from mmlm.models.encoders.text_encoders import RecurrentEncoder, TextEncoder
from mmlm.models.encoders.vision_encoders import EfficientNetGrid, VisionTransformer
from mmlm.models.sequence import Sequence

D = 16
V = 9
IMAGES = ((2, 32, 32, 3), 16)
VISION_ENCODERS = {
  'vit': (VisionTransformer(D, 1, 2, patch=8), *IMAGES),
  'vit-scanned-stem': (
    VisionTransformer(D, 2, 2, patch=2, stem=(4, 6), scan=True, remat=True),
    *IMAGES,
  ),
  'vit-sinusoidal-half': (
    VisionTransformer(D, 1, 2, patch=8, positions='sinusoidal', dtype='bfloat16'),
    *IMAGES,
  ),
  'grid': (EfficientNetGrid(D), (2, 49, 1280), 49),
  'grid-layers': (EfficientNetGrid(D, layers=1, dtype='bfloat16'), (2, 49, 1280), 49),
  'grid-of-pictures': (EfficientNetGrid(D, frozen=False), (2, 64, 96, 3), 6),
}


@pytest.mark.parametrize('mask', [None, np.array([True, False])], ids=['unmasked', 'masked'])
@pytest.mark.parametrize('name', VISION_ENCODERS)
def test_encoders_of_pictures_give_sequences(name, mask):
  module, shape, length = VISION_ENCODERS[name]

  def run(x):
    return module.init_with_output(jax.random.key(0), x, mask)

  out, variables = jax.eval_shape(run, jax.ShapeDtypeStruct(shape, jnp.float32))
  assert isinstance(out, Sequence)
  assert out.values.shape == (2, length, D)
  assert out.values.dtype == module.dtype
  assert out.mask.shape == (2, length)
  assert out.mask.dtype == jnp.bool_
  assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype('float32')}
  assert ('backbone' in variables['params']) == (name == 'grid-of-pictures')


def test_the_mask_of_a_missing_picture_covers_its_whole_sequence():
  module = EfficientNetGrid(D)
  grid = normal(0, 2, 3, 8)

  @jax.jit
  def encode(mask):
    out, _ = module.init_with_output(jax.random.key(0), grid, mask)
    return out.mask

  mask = encode(np.array([True, False]))
  np.testing.assert_array_equal(mask, [[True] * 3, [False] * 3])


TEXT_ENCODERS = {
  'transformer': TextEncoder(D, vocab_size=V, max_length=8, layers=1, heads=2, positions='rotary'),
  'lstm': RecurrentEncoder(D, vocab_size=V, layers=2, cell='lstm'),
  'gru': RecurrentEncoder(D, vocab_size=V, layers=2, cell='gru'),
}


@pytest.fixture(scope='module', params=TEXT_ENCODERS)
def text_encoder(request):
  """(function of tokens and mask, tokens, mask of lengths 6, 4 and 0)."""
  module = TEXT_ENCODERS[request.param]
  tokens = np.random.default_rng(0).integers(V, size=(3, 6))
  mask = np.arange(6) < np.array([6, 4, 0])[:, None]
  params = initial(module, tokens, mask)
  return jax.jit(lambda tokens, mask: module.apply({'params': params}, tokens, mask)), tokens, mask


def test_padding_of_text_changes_nothing(text_encoder):
  run, tokens, mask = text_encoder
  out = run(tokens, mask)
  assert np.all(np.isfinite(out.values))
  np.testing.assert_array_equal(out.mask, mask)
  garbage = run(np.where(mask, tokens, (tokens + 1) % V), mask)
  padding = ((0, 0), (0, 2))
  longer = run(np.pad(tokens, padding), np.pad(mask, padding))
  for values in (garbage.values, longer.values[:, :6]):
    close(values[mask], out.values[mask])


def test_text_is_read_in_both_directions(text_encoder):
  run, tokens, mask = text_encoder
  values = run(tokens, mask).values
  for changed, position in ((0, 3), (3, 0)):
    moved = tokens.copy()
    moved[:, changed] = (moved[:, changed] + 1) % V
    difference = np.abs(run(moved, mask).values - values)
    assert difference[:2, position].max(-1).min() > 1e-4


def test_noise_of_features_is_added_in_training_alone_with_its_deviation():
  """The deviation is in units of the features'; the sum has a deviation of 1."""
  noisy = FeatureRecurrent(D, width=3, noise=2.0)
  quiet = FeatureRecurrent(D, width=3)
  features = normal(0, 400, 6, 3)
  mask = np.arange(6) < np.random.default_rng(1).integers(1, 7, size=(400, 1))
  params = initial(quiet, features, mask)

  @functools.partial(jax.jit, static_argnums=(0, 1))
  def run(module, train, features, mask):
    rngs = {'dropout': jax.random.key(0)} if train else {}
    out, captured = module.apply(
      {'params': params}, features, mask, train, rngs=rngs, capture_intermediates=True
    )
    (projected,) = captured['intermediates']['projection']['__call__']
    return out.values, projected

  def projection_inputs(projected):
    """Solves for the inputs of the projection, which is linear."""
    kernel = np.asarray(params['projection']['kernel'])
    solution, *_ = np.linalg.lstsq(kernel.T, np.asarray(projected)[mask].T, rcond=None)
    return solution.T

  evaluated, evaluated_projection = run(noisy, False, features, mask)
  close(evaluated, run(quiet, False, features / 5**0.5, mask)[0])
  with_noise = projection_inputs(run(noisy, True, features, mask)[1])
  without_noise = projection_inputs(evaluated_projection)
  np.testing.assert_allclose(with_noise.std(0), 1, rtol=0.1)
  np.testing.assert_allclose((with_noise - without_noise).std(0), 2 / 5**0.5, rtol=0.1)
  empty, _ = run(noisy, True, features, np.zeros_like(mask))
  assert np.all(np.isfinite(empty))
