"""Attention against its equation.

Axes: B batch, T time, S memory, H heads, G groups of keys, E width of a head, D width.
"""

import types

import jax
import numpy as np
import pytest
from model_helpers import apply_jitted, close, initial, normal

from mmlm.models import attention
from mmlm.models.attention import MultiHeadAttention, dot_product_attention

B = 2
T = 5
S = 4
D = 16


def attention_by_hand(query, key, value, mask):
  """softmax(QK^T / sqrt(E)) V; a group of keys serves H / G successive heads. `mask` [B, T, S]."""
  repeats = query.shape[2] // key.shape[2]
  key = np.repeat(key, repeats, axis=2)
  value = np.repeat(value, repeats, axis=2)
  logits = np.einsum('bthe,bshe->bhts', query, key) / np.sqrt(query.shape[-1])
  exponentials = np.exp(logits) * mask[:, None]
  weights = exponentials / exponentials.sum(-1, keepdims=True)
  return np.einsum('bhts,bshe->bthe', weights, value)


@pytest.mark.parametrize('backend', ['cpu', 'tpu'])
@pytest.mark.parametrize('groups', [4, 2, 1])
def test_dot_product_attention_follows_its_equation(groups, backend, monkeypatch):
  monkeypatch.setattr(jax, 'default_backend', lambda: backend)  # chooses the code, not the device
  query = normal(0, B, T, 4, 6)
  key = normal(1, B, T, groups, 6)
  value = normal(2, B, T, groups, 6)
  keys_mask = np.array([[1, 1, 0, 1, 0], [1, 0, 0, 0, 1]], bool)  # [B, S]
  pairs_mask = normal(3, B, T, T) + 2 * np.eye(T) > 0  # [B, T, S]
  causal = np.tril(np.ones((T, T), bool))
  every = np.ones((B, T, T), bool)
  cases = [
    (None, False, every),
    (keys_mask, False, every & keys_mask[:, None]),
    (pairs_mask, False, pairs_mask),
    (None, True, every & causal),
    (keys_mask, True, causal & keys_mask[:, None]),
  ]

  @jax.jit
  def attend(query, key, value):
    key = key.transpose(0, 2, 3, 1)
    value = value.swapaxes(1, 2)
    results = []
    for mask, is_causal, _ in cases:
      results.append(dot_product_attention(query, key, value, mask, is_causal))
    return results

  for result, (_, _, mask) in zip(attend(query, key, value), cases, strict=True):
    close(result, attention_by_hand(query, key, value, mask))


@pytest.mark.parametrize('memory', [False, True], ids=['self', 'cross'])
@pytest.mark.parametrize('kv_heads', [0, 2])
def test_multi_head_attention_follows_its_equation(kv_heads, memory):
  x = normal(0, B, T, D)
  y = x
  inputs = (x, None)
  if memory:
    y = normal(1, B, S, D)
    inputs = (x, y)
  module = MultiHeadAttention(4, kv_heads)
  params = initial(module, *inputs)
  assert params['key']['kernel'].shape == (D, kv_heads or 4, 4)
  mask = np.ones(y.shape[:2], bool)
  mask[1, 2:] = False

  def project(name, x):
    return np.einsum('btd,dhe->bthe', x, params[name]['kernel']) + params[name]['bias']

  query = project('query', x)
  attended = attention_by_hand(query, project('key', y), project('value', y), mask[:, None])
  output = params['out']
  expected = np.einsum('bthe,hed->btd', attended, output['kernel']) + output['bias']
  close(apply_jitted(module, params, *inputs, mask=mask), expected)


@pytest.mark.parametrize(
  'capability, dtype, lengths, fused',
  [
    ('9.0', 'bfloat16', (64, 64), True),
    ('8.0', 'float16', (2, 40), True),
    ('12.0', 'bfloat16', (64, 64), True),
    ('7.5', 'float16', (64, 64), False),
    ('gfx942', 'bfloat16', (64, 64), False),
    ('9.0', 'float32', (64, 64), False),
    ('9.0', 'bfloat16', (37, 64), False),
    ('9.0', 'bfloat16', (64, 49), False),
  ],
)
def test_cudnn_computes_half_precision_of_even_lengths_on_ampere_or_later(
  monkeypatch, capability, dtype, lengths, fused
):
  device = types.SimpleNamespace(compute_capability=capability)
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  monkeypatch.setattr(jax, 'devices', lambda: [device])
  queries, keys = lengths
  query = jax.ShapeDtypeStruct((1, queries, 4, 64), dtype)
  key = jax.ShapeDtypeStruct((1, 4, 64, keys), dtype)
  assert attention._fused(query, key) == fused
