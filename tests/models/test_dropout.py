"""Dropout: of values, and of the weights of attention in every part that has them."""

import jax
import numpy as np
import pytest
from model_helpers import initial, normal

from mmlm.models.attention import MultiHeadAttention
from mmlm.models.encoders.conformer import Conformer
from mmlm.models.encoders.text_encoders import TextEncoder
from mmlm.models.heads import TransformerDecoder
from mmlm.models.layers import Dropout

B = 2
T = 5
D = 16
V = 9


def test_dropout():
  x = np.ones((100, 999), np.float32)  # no multiple of 4: bits are drawn in words

  def drop(rate, seed, train=True):
    return Dropout(rate).apply({}, x, train, rngs={'dropout': jax.random.key(seed)})

  for rate in (0.1, 0.5, 0.9):
    out = np.asarray(drop(rate, 0))
    exact = round(rate * 256) / 256
    error = 5 * np.sqrt(exact * (1 - exact) / x.size)  # five standard deviations
    assert abs((out == 0).mean() - exact) < error
    assert abs(out.mean() - 1) < error / (1 - exact)
    np.testing.assert_allclose(out[out > 0], 1 / (1 - exact), rtol=1e-6)
    rows = (out == 0).mean(1)
    assert rows.std() < 2 * np.sqrt(exact * (1 - exact) / x.shape[1])  # no row is dropped as one
  assert np.mean((drop(0.5, 0) == 0) == (drop(0.5, 1) == 0)) < 0.51
  np.testing.assert_array_equal(drop(0.5, 0), drop(0.5, 0))
  for same in (drop(0.5, 0, train=False), drop(0.0, 0)):
    np.testing.assert_array_equal(same, x)


def test_dropout_bytes_are_independent():
  """Four decisions come from one word: neighbours must not know of each other."""
  out = Dropout(0.5).apply(
    {}, np.ones(40000, np.float32), True, rngs={'dropout': jax.random.key(0)}
  )
  correlation = np.corrcoef((np.asarray(out) == 0).reshape(-1, 4).T)
  assert np.abs(correlation - np.eye(4)).max() < 0.05


@pytest.mark.parametrize('backend', ['cpu', 'tpu'])
@pytest.mark.parametrize('causal', [True, False])
def test_dropout_of_the_weights_of_attention(causal, backend, monkeypatch):
  monkeypatch.setattr(jax, 'default_backend', lambda: backend)
  module = MultiHeadAttention(
    2, 1, causal, dropout=0.5
  )  # rotary where causal, as it goes with self-attention
  x = normal(0, B, T, D)
  mask = np.arange(T) < np.array([[T], [3]])
  memory = None if causal else normal(1, B, T, D)
  params = initial(module, x, memory)

  def run(module, key, train):
    return module.apply(
      {'params': params}, x, memory, mask, causal, train=train, rngs={'dropout': key}
    )

  keys = jax.random.split(jax.random.key(0), 3000)
  draws = np.asarray(jax.jit(jax.vmap(lambda key: run(module, key, True)))(keys))
  kept, none = (
    np.asarray(run(m, keys[0], train))
    for m, train in ((module, False), (MultiHeadAttention(2, 1, causal), True))
  )
  np.testing.assert_array_equal(kept, none)
  error = draws.std(0) / np.sqrt(len(keys))
  assert draws.std(0).min() > 1e-3 and (np.abs(draws.mean(0) - kept) < 5 * error).all()


@pytest.mark.parametrize('part', ['decoder', 'encoder', 'conformer'])
def test_a_part_hands_on_its_dropout_of_attention(part):
  x = np.arange(B * T).reshape(B, T) % V
  mask = np.ones((B, T), bool)
  build = {
    'decoder': lambda **more: TransformerDecoder(
      D, vocab_size=V, max_length=T, layers=1, heads=2, **more
    ),
    'encoder': lambda **more: TextEncoder(D, vocab_size=V, max_length=T, layers=1, heads=2, **more),
    'conformer': lambda **more: Conformer(
      D, width=4, subsampling=2, channels=3, layers=1, heads=2, kernel=3, **more
    ),
  }[part]
  if part == 'decoder':
    inputs = (x, None)
  elif part == 'conformer':
    inputs = (normal(0, B, T, 4), mask)
  else:
    inputs = (x, mask)
  params = initial(build(), *inputs)

  def values(out):
    return np.asarray(getattr(out, 'values', out))

  def run(rate, train):
    return values(
      build(attention_dropout=rate).apply(
        {'params': params}, *inputs, train, rngs={'dropout': jax.random.key(0)}
      )
    )

  np.testing.assert_array_equal(run(0.5, False), run(0.0, True))
  assert np.abs(run(0.5, True) - run(0.0, True)).max() > 1e-3
