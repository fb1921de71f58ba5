"""The encoder of Whisper: padding, convolutions, and its two ways to compute attention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from whispers import FRAMES, state_of, write_hugging_face

from mmlm.models import attention
from mmlm.models.encoders.whisper_encoder import Convolution
from mmlm.pretrained.whisper import encoder_of, load_whisper
from mmlm.utils.errors import UserError


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  """(sizes, parameters of the encoder)"""
  folder = write_hugging_face(tmp_path_factory.mktemp('whisper') / 'hf')
  sizes, params, _ = load_whisper(folder)
  return sizes, params['encoder']


def test_padding_changes_no_position_of_the_encoder(model):
  sizes, params = model
  encoder = encoder_of(sizes)
  encode = jax.jit(lambda frames, mask: encoder.apply({'params': params}, frames, mask))
  whole = encode(FRAMES, None).values[1]
  for length in (40, 41):
    mask = np.arange(100) < np.array([[length], [100]])
    values, positions = encode(FRAMES, mask)
    alone = encode(FRAMES[:1, :length], np.ones((1, length), bool)).values[0]
    assert positions.sum(1).tolist() == [-(-length // 2), 50]
    np.testing.assert_allclose(values[0, : len(alone)], alone, atol=1e-5)
    np.testing.assert_allclose(values[1], whole, atol=1e-5)
  with pytest.raises(UserError, match='102 frames'):
    encode(np.zeros((1, 102, 80)), None)


@pytest.mark.parametrize('number, stride, bands', [(1, 1, 80), (2, 2, 16)])
def test_convolutions_are_those_of_the_weights(model, number, stride, bands):
  _, params = model
  x = FRAMES[..., :bands]
  kernel = state_of()[f'encoder.conv{number}.weight']
  bias = state_of()[f'encoder.conv{number}.bias']
  channels_first = x.swapaxes(1, 2)
  expected = jax.lax.conv_general_dilated(channels_first, kernel, (stride,), [(1, 1)])
  expected = jax.nn.gelu(expected + bias[:, None], approximate=False).swapaxes(1, 2)
  layer = params[f'convolution_{number}']
  output = Convolution(16, stride).apply({'params': layer}, x)
  np.testing.assert_allclose(output, expected, atol=1e-4)


@pytest.mark.parametrize(
  'mask',
  [
    None,
    np.arange(9)[None, None] < np.array([[[3]], [[9]]]),
    np.tri(7, 9, dtype=bool)[None],
  ],
  ids=['no mask', 'padding', 'causal'],
)
def test_attention_head_by_head_is_that_of_all_heads_together(mask):
  keys = jax.random.split(jax.random.key(0), 3)
  q = jax.random.normal(keys[0], (2, 7, 4, 8))
  k = jax.random.normal(keys[1], (2, 2, 8, 9))
  v = jax.random.normal(keys[2], (2, 2, 9, 8))

  def value_and_gradients(function):
    def loss(q, k, v):
      return jnp.sin(function(q, k, v, mask)).sum()

    return jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(q, k, v)

  together = value_and_gradients(attention._batched_products)
  head_by_head = value_and_gradients(attention._head_by_head)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), together, head_by_head)
