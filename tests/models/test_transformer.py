"""Transformer blocks and stacks: equations, causality, scan, remat, half precision.

Axes: B batch, T time, S memory, D width, V vocabulary.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_helpers import apply_jitted, close, initial, normal

from mmlm.models.attention import MultiHeadAttention
from mmlm.models.heads import TransformerDecoder
from mmlm.models.sequence import Sequence
from mmlm.models.transformer import Transformer, TransformerBlock
from mmlm.utils.pytree import flat, name_of

B = 2
T = 5
S = 4
D = 16
V = 9
X = normal(0, B, T, D)


@pytest.mark.parametrize(
  'pre_norm, gated, activation',
  [(True, True, 'silu'), (False, False, 'relu'), (False, True, 'gelu')],
)
def test_a_block_follows_its_equations(pre_norm, gated, activation):
  memory = normal(1, B, S, D)
  module = TransformerBlock(4, ffn_dim=24, gated=gated, activation=activation, pre_norm=pre_norm)
  params = initial(module, X, memory=memory)

  def dense(name, x):
    return x @ params['ffn'][name]['kernel'] + params['ffn'][name]['bias']

  def self_attention(x):
    return MultiHeadAttention(4).apply({'params': params['self_attention']}, x)

  def cross_attention(x):
    attention = {'params': params['cross_attention']}
    return MultiHeadAttention(4).apply(attention, x, memory=memory)

  def feed_forward(x):
    hidden = getattr(jax.nn, activation)(dense('up', x))
    if gated:
      hidden = hidden * dense('gate', x)
    return dense('down', hidden)

  def normed(name, x):
    norm = params[f'{name}_norm']
    return jax.nn.standardize(x, epsilon=1e-6) * norm['scale'] + norm['bias']

  def by_hand(x):
    layers = {'self': self_attention, 'cross': cross_attention, 'ffn': feed_forward}
    for name, layer in layers.items():
      if pre_norm:
        x = x + layer(normed(name, x))
      else:
        x = normed(name, x + layer(x))
    return x

  close(apply_jitted(module, params, X, memory=memory), jax.jit(by_hand)(X))
  assert ('gate' in params['ffn']) == gated


@pytest.mark.parametrize('pre_norm', [True, False])
def test_only_a_pre_norm_stack_has_a_final_norm(pre_norm):
  module = Transformer(1, dict(heads=2, pre_norm=pre_norm))
  assert ('norm' in initial(module, X)) == pre_norm


def test_gradients_of_a_causal_stack_do_not_flow_backwards():
  module = Transformer(2, dict(heads=2, causal=True, rotary=True))
  x = normal(0, T, 8)
  params = initial(module, x[None])

  def run(x):
    return module.apply({'params': params}, x[None])[0]

  jacobian = jax.jit(jax.jacrev(run))(x)  # [T, D, T, D]
  reach = np.abs(jacobian).max((1, 3))
  assert np.all(reach[np.triu_indices(T, 1)] == 0)
  assert np.all(reach[np.tril_indices(T)] > 1e-4)


# Scan and remat


def stack(scan=False, remat=False, layers=2):
  return Transformer(layers, dict(heads=2, ffn_dim=8, dropout=0.3), scan, remat)


@pytest.fixture(scope='module', params=[False, True], ids=['blocks', 'scan'])
def gradients(request):
  """(scan, parameters, and with dropout: loss and gradient without remat and with it)."""
  scan = request.param
  layers = 1 + scan
  params = initial(stack(scan, layers=layers), X)

  @functools.partial(jax.jit, static_argnums=1)
  def value_and_grad(params, remat):
    module = stack(scan, remat, layers)

    def loss(params):
      rngs = {'dropout': jax.random.key(0)}
      return (module.apply({'params': params}, X, train=True, rngs=rngs) ** 3).sum()

    return jax.value_and_grad(loss)(params)

  return scan, params, value_and_grad(params, False), value_and_grad(params, True)


def test_remat_changes_neither_names_nor_loss_nor_gradient(gradients):
  scan, params, without, with_remat = gradients
  shapes = initial(stack(scan, True, 1 + scan), X)
  assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, shapes)
  jax.tree.map(functools.partial(close, rtol=1e-4, atol=1e-3), without, with_remat)
  assert ('blocks' in params) == scan


def test_every_layer_learns(gradients):
  scan, _, (_, gradient), _ = gradients
  for name, values in flat(gradient).items():
    if name.endswith('key/bias'):  # adds the same to all logits: its gradient is 0
      continue
    layers = values if scan and name.startswith('blocks') else values[None]
    largest = np.abs(layers).reshape(len(layers), -1).max(1)
    assert largest.min() > 1e-3, name


def test_a_scanned_stack_computes_what_its_blocks_do():
  params = initial(stack(True), X)
  unrolled = {'norm': params['norm']}
  for i in range(2):
    unrolled[f'block_{i}'] = jax.tree.map(lambda x, i=i: x[i], params['blocks'])
  close(apply_jitted(stack(True), params, X), apply_jitted(stack(), unrolled, X))


def test_scanned_layers_start_and_drop_differently():
  x = np.zeros((1, 1, 64), np.float32)
  module = stack(True)
  blocks = jax.jit(module.init)(jax.random.key(0), x)['params']['blocks']
  kernel = blocks['ffn']['up']['kernel']
  assert np.abs(kernel[0] - kernel[1]).max() > 0.1

  # Each layer adds ones, of which some are dropped: sums are 0, 1 or 2 if layers draw differently,
  # otherwise 0 or 2.
  def ones_added(path, x):
    is_one = name_of(path).endswith(('scale', 'down/bias'))
    return np.full(x.shape, float(is_one), np.float32)

  params = jax.tree_util.tree_map_with_path(ones_added, initial(module, x))
  run = jax.jit(functools.partial(module.apply, train=True))
  out = run({'params': params}, x, rngs={'dropout': jax.random.key(0)})
  assert len(np.unique(np.round(out, 3))) == 3


def test_half_precision_is_computed_in_it_with_parameters_in_single():
  tokens = np.arange(T)[None] % V
  memory = Sequence(normal(0, 1, S, D), np.ones((1, S), bool))

  def decoder(dtype):
    return TransformerDecoder(D, vocab_size=V, max_length=T, layers=1, heads=2, dtype=dtype)

  full = decoder('float32')
  half = decoder('bfloat16')
  params = initial(full, tokens, memory)
  abstract = jax.eval_shape(half.init, jax.random.key(0), tokens, memory)['params']
  assert {x.dtype for x in jax.tree.leaves(abstract)} == {jnp.dtype('float32')}
  exact = apply_jitted(full, params, tokens, memory)
  out = apply_jitted(half, params, tokens, memory)
  assert out.dtype == jnp.bfloat16
  error = np.abs(out.astype(jnp.float32) - exact)
  assert 1e-5 < error.max() < 0.1 * float(exact.std())
