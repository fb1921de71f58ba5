"""Encoders of sounds: padding changes nothing, lengths follow the strides, one row is enough, and everything learns.

Axes: B batch, S rows of features, C values of a row, T rows after subsampling, D width.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_models import initial, normal

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


def mask_of(rows=S):
  return np.arange(rows) < LENGTHS[:, None]


MADE = {
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


@pytest.fixture(scope='module', params=MADE)
def encoder(request):
  """(module, parameters, function of values and mask)."""
  module = MADE[request.param]
  params = initial(module, normal(0, B, S, C), mask_of())
  return module, params, jax.jit(lambda x, mask: module.apply({'params': params}, x, mask))


def test_padding_changes_nothing_and_lengths_are_rounded_up(encoder):
  module, _, run = encoder
  x = normal(0, B, S, C)
  out = run(x, mask_of())
  wanted = subsampled_length(LENGTHS, module.subsampling)
  assert (
    out.values.shape == (B, subsampled_length(S, module.subsampling), D)
    and out.mask.sum(1).tolist() == wanted.tolist()
  )
  assert np.all(np.isfinite(out.values))
  garbage = np.where(mask_of()[..., None], x, 100 * normal(1, B, S, C))
  for longer in (S, S + 1, S + 7):
    wide = np.full((B, longer, C), 50, np.float32)
    wide[:, :S] = garbage
    found = run(wide, mask_of(longer))
    assert found.mask.sum(1).tolist() == wanted.tolist()
    there = out.mask[..., None]
    close(
      np.where(there, found.values[:, : out.values.shape[1]], 0), np.where(there, out.values, 0)
    )


def test_every_row_is_seen_from_every_place(encoder):
  """What stands at either end changes the first and the last place of the memory."""
  _, _, run = encoder
  x = normal(0, B, S, C)
  before = run(x, mask_of()).values
  for row in (0, LENGTHS[0] - 1):
    moved = x.copy()
    moved[0, row] += 1
    change = np.abs(run(moved, mask_of()).values - before).max(-1)
    assert change[0].min() > 1e-5 and change[1:].max() == 0


def test_every_parameter_learns_and_what_is_masked_does_not(encoder):
  module, params, _ = encoder
  x = normal(0, B, S, C)
  mask = mask_of()

  def loss(params, x):
    out = module.apply({'params': params}, x, mask)
    return jnp.where(out.mask[..., None], out.values**3 + out.values, 0).sum()

  by_params, by_x = jax.jit(jax.grad(loss, (0, 1)))(params, x)
  for name, value in flat(by_params).items():
    if not name.endswith('key/bias'):  # it moves all scores alike
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


def test_a_place_sees_the_rows_around_it():
  """Without layers above, place t of half as many sees rows 2t - 1, 2t and 2t + 1."""
  module = Subsampling(D, 2, 4)
  mask = np.ones((1, 8), bool)
  x = normal(0, 1, 8, C)
  params = initial(module, x, mask)
  reach = jax.jacrev(lambda x: module.apply({'params': params}, x, mask)[0])(x)[
    0, :, :, 0
  ]  # [T, D, S, C]
  seen = np.abs(reach).max((1, 3)) > 0
  assert [np.flatnonzero(row).tolist() for row in seen] == [[0, 1], [1, 2, 3], [3, 4, 5], [5, 6, 7]]


def test_planes_are_channels_of_the_same_frequency():
  """Values and their differences of one frequency meet in the first convolution; those of a far one do not."""
  module = Subsampling(D, 2, 4, planes=2)
  mask = np.ones((1, 2), bool)
  x = normal(0, 1, 2, 16)  # two planes of eight frequencies
  params = initial(module, x, mask)
  only = jax.tree.map(jnp.zeros_like, params['projection'])
  only['kernel'] = (
    only['kernel'].at[0].set(1.0)
  )  # the first channel at the first frequency, which sees frequencies 0 and 1
  gradient = jax.grad(
    lambda x: module.apply({'params': {**params, 'projection': only}}, x, mask)[0].sum()
  )(jnp.abs(x) + 1)
  other = jax.grad(
    lambda x: module.apply({'params': {**params, 'projection': only}}, x, mask)[0].sum()
  )(-jnp.abs(x) - 1)
  assert np.flatnonzero(np.abs(gradient).max((0, 1)) + np.abs(other).max((0, 1))).tolist() == [
    0,
    1,
    8,
    9,
  ]


def test_the_encoders_have_names_and_options():
  for name in ('audio_transformer', 'conformer', 'audio_recurrent'):
    assert (
      name in ENCODERS
      and ENCODERS[name].reads_features
      and {'width', 'subsampling'} <= ENCODERS[name].__dataclass_fields__.keys()
    )


@pytest.mark.parametrize(
  'module, says',
  [
    (Conformer(D, width=C, subsampling=3), 'subsampling=3'),
    (Conformer(D, width=C, planes=4), 'planes=4'),
    (Conformer(D, width=C, kernel=4), 'kernel=4'),
    (Conformer(D, width=C, heads=3), 'model.dim=16'),
  ],
)
def test_options_that_make_no_sense_are_refused(module, says):
  with pytest.raises(UserError, match=says):
    jax.eval_shape(
      module.init, jax.random.key(0), np.zeros((1, S, C), np.float32), np.ones((1, S), bool)
    )
