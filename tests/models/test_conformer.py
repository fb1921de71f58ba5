"""Encoders of audio: padding changes nothing, lengths follow strides, every parameter learns.

Axes: B batch, S frames, C features of a frame, T positions after subsampling, D width.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_helpers import initial, normal

from mmlm.models.encoders import ENCODERS
from mmlm.models.encoders.audio_encoders import AudioRecurrent, AudioTransformer
from mmlm.models.encoders.conformer import Conformer, depthwise_in_time
from mmlm.models.encoders.subsampling import Subsampling, subsampled_length
from mmlm.utils.errors import UserError
from mmlm.utils.pytree import flat

B = 4
S = 13
C = 6
D = 16
LENGTHS = np.array([13, 6, 1, 0])
close = functools.partial(np.testing.assert_allclose, atol=3e-5, rtol=3e-5)


def mask_of(frames=S):
  return np.arange(frames) < LENGTHS[:, None]


ENCODERS_BY_NAME = {
  'conformer': Conformer(D, width=C, subsampling=4, channels=3, layers=2, heads=2, kernel=5),
  'conformer-planes-remat': Conformer(
    D, width=C, subsampling=2, channels=3, planes=3, layers=1, heads=2, kernel=3, remat=True
  ),
  'conformer-whole': Conformer(D, width=C, subsampling=1, layers=1, heads=2, kernel=7),
  'transformer': AudioTransformer(D, width=C, subsampling=8, channels=3, layers=1, heads=2),
  'transformer-rotary': AudioTransformer(
    D, width=C, subsampling=2, channels=3, layers=1, heads=2, positions='rotary'
  ),
  'recurrent': AudioRecurrent(D, width=C, subsampling=2, channels=3, layers=1),
}


@pytest.fixture(scope='module', params=ENCODERS_BY_NAME)
def encoder(request):
  """(module, parameters, function of values and mask)."""
  module = ENCODERS_BY_NAME[request.param]
  params = initial(module, normal(0, B, S, C), mask_of())
  return module, params, jax.jit(lambda x, mask: module.apply({'params': params}, x, mask))


def test_padding_changes_nothing_and_lengths_are_rounded_up(encoder):
  module, _, run = encoder
  x = normal(0, B, S, C)
  out = run(x, mask_of())
  lengths = subsampled_length(LENGTHS, module.subsampling)
  length = subsampled_length(S, module.subsampling)
  assert out.values.shape == (B, length, D)
  np.testing.assert_array_equal(out.mask.sum(1), lengths)
  assert np.all(np.isfinite(out.values))
  garbage = np.where(mask_of()[..., None], x, 100 * normal(1, B, S, C))
  for longer in (S, S + 1, S + 7):
    wide = np.full((B, longer, C), 50, np.float32)
    wide[:, :S] = garbage
    result = run(wide, mask_of(longer))
    np.testing.assert_array_equal(result.mask.sum(1), lengths)
    close(result.values[:, :length][out.mask], out.values[out.mask])


def test_every_frame_changes_every_position(encoder):
  """The frames at both ends change all positions of their example, and of no other."""
  _, _, run = encoder
  x = normal(0, B, S, C)
  before = run(x, mask_of()).values
  for frame in (0, LENGTHS[0] - 1):
    moved = x.copy()
    moved[0, frame] += 1
    change = np.abs(run(moved, mask_of()).values - before).max(-1)
    assert change[0].min() > 1e-5 and change[1:].max() == 0


def test_gradients_reach_every_parameter_and_no_masked_frame(encoder):
  module, params, _ = encoder
  x = normal(0, B, S, C)
  mask = mask_of()

  def loss(params, x):
    out = module.apply({'params': params}, x, mask)
    return jnp.where(out.mask[..., None], out.values**3 + out.values, 0).sum()

  by_params, by_x = jax.jit(jax.grad(loss, (0, 1)))(params, x)
  for name, value in flat(by_params).items():
    if not name.endswith('key/bias'):  # adds the same to all logits
      assert np.abs(value).max() > 1e-6, name
  assert not np.any(np.where(mask[..., None], 0, by_x)) and np.all(np.isfinite(by_x))


def test_dropout_draws_anew_for_each_key():
  module = Conformer(
    D, width=C, subsampling=2, channels=3, layers=1, heads=2, kernel=3, dropout=0.3, remat=True
  )
  x = normal(0, B, S, C)
  params = initial(module, x, mask_of())
  run = jax.jit(
    lambda key: module.apply({'params': params}, x, mask_of(), True, rngs={'dropout': key}).values
  )
  assert np.abs(run(jax.random.key(0)) - run(jax.random.key(1)))[0].max() > 1e-3
  np.testing.assert_array_equal(run(jax.random.key(0)), run(jax.random.key(0)))


@pytest.mark.parametrize('kernel', [5, 1])
def test_the_depthwise_convolution_and_its_gradients_are_those_of_xla(kernel):
  x = normal(0, 2, 7, 3)
  weights = normal(1, kernel, 3)
  upstream = normal(2, 2, 7, 3)

  def by_xla(x, weights):
    pads = [(kernel // 2, kernel // 2)]
    return jax.lax.conv_general_dilated(
      x,
      weights[:, None],
      (1,),
      pads,
      dimension_numbers=('NWC', 'WIO', 'NWC'),
      feature_group_count=3,
    )

  (out, pull), (expected, pull_expected) = (
    jax.vjp(depthwise_in_time, x, weights),
    jax.vjp(by_xla, x, weights),
  )
  for a, b in zip((out, *pull(upstream)), (expected, *pull_expected(upstream)), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)
  many = jax.vmap(jax.grad(lambda w: jnp.sum(depthwise_in_time(x, w) * upstream)))(
    jnp.stack([weights, 2 * weights])
  )
  np.testing.assert_allclose(many, jnp.stack([pull_expected(upstream)[1]] * 2), atol=1e-5)


def test_a_subsampled_position_reads_the_frames_around_it():
  """Position t of half as many reads frames 2t - 1, 2t and 2t + 1."""
  module = Subsampling(D, 2, 4)
  mask = np.ones((1, 8), bool)
  x = normal(0, 1, 8, C)
  params = initial(module, x, mask)

  def run(x):
    out, _ = module.apply({'params': params}, x, mask)
    return out

  jacobian = jax.jacrev(run)(x)[0, :, :, 0]  # [T, D, S, C]
  reads = np.abs(jacobian).max((1, 3)) > 0
  frames = [np.flatnonzero(position).tolist() for position in reads]
  assert frames == [[0, 1], [1, 2, 3], [3, 4, 5], [5, 6, 7]]


def test_planes_are_channels_of_the_same_frequency():
  """The first convolution reads values and deltas of one frequency, and none of a distant one."""
  module = Subsampling(D, 2, 4, planes=2)
  mask = np.ones((1, 2), bool)
  x = normal(0, 1, 2, 16)  # two planes of eight frequencies
  params = initial(module, x, mask)
  # The first channel at the first frequency, which reads frequencies 0 and 1.
  projection = jax.tree.map(jnp.zeros_like, params['projection'])
  projection['kernel'] = projection['kernel'].at[0].set(1.0)
  params = params | {'projection': projection}

  @jax.grad
  def gradient(x):
    out, _ = module.apply({'params': params}, x, mask)
    return out.sum()

  # Of both signs, so that one of them passes the ReLU.
  positive = jnp.abs(x) + 1
  reach = np.abs(gradient(positive)) + np.abs(gradient(-positive))
  assert np.flatnonzero(reach.max((0, 1))).tolist() == [0, 1, 8, 9]


def test_the_encoders_have_names_and_options():
  for name in ('audio_transformer', 'conformer', 'audio_recurrent'):
    encoder_class = ENCODERS[name]
    assert encoder_class.reads_features
    assert {'width', 'subsampling'} <= encoder_class.__dataclass_fields__.keys()


@pytest.mark.parametrize(
  'module, says',
  [
    (Conformer(D, width=C, subsampling=3), 'subsampling=3'),
    (Conformer(D, width=C, planes=4), 'planes=4'),
    (Conformer(D, width=C, kernel=4), 'kernel=4'),
    (Conformer(D, width=C, heads=3), 'model.dim=16'),
  ],
)
def test_invalid_options_are_errors(module, says):
  with pytest.raises(UserError, match=says):
    initial(module, np.zeros((1, S, C), np.float32), np.ones((1, S), bool))
