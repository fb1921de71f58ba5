"""Invariants of the models: who may see what, cached = uncached, padding and batch composition change nothing.

Axes: B batch, K rows an example, R = B * K, T time, S memory, H heads, G groups, E width of a head, D width, V vocabulary.
"""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmlm.models import attention
from mmlm.models.attention import DecodeStep, MultiHeadAttention, dot_product_attention
from mmlm.models.embeddings import (
  PatchEmbedding,
  Positions,
  TokenEmbedding,
  rotate,
  sinusoidal_table,
)
from mmlm.models.encoders.text_encoders import TextEncoder
from mmlm.models.encoders.vision_encoders import EfficientNetGrid, VisionTransformer
from mmlm.models.heads import TransformerDecoder
from mmlm.models.sequence import Sequence
from mmlm.models.transformer import Transformer, TransformerBlock
from mmlm.utils.errors import UserError
from mmlm.utils.pytree import flat, name_of

B = 2
K = 2
T = 5
S = 4
D = 16
V = 9
close = functools.partial(np.testing.assert_allclose, atol=2e-5, rtol=2e-5)


def normal(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def initial(module, *args, **kwargs):
  """Random parameters: biases would start at 0 and scales at 1, where a wrong use of them does not show."""
  shapes = jax.eval_shape(functools.partial(module.init, **kwargs), jax.random.key(0), *args)[
    'params'
  ]

  def drawn(path, x):
    return (path[-1].key == 'scale') + 0.3 * normal(len(str(path)) + x.size, *x.shape)

  return jax.tree_util.tree_map_with_path(drawn, shapes)


# Attention


def attention_by_hand(query, key, value, seen):
  """softmax(QK^T / sqrt(E)) V; every group of keys serves H / G heads that follow one another. `seen` [B, T, S]."""
  repeats = query.shape[2] // key.shape[2]
  key, value = (np.repeat(x, repeats, axis=2) for x in (key, value))
  scores = np.einsum('bthe,bshe->bhts', query, key) / np.sqrt(query.shape[-1])
  weights = np.exp(scores) * seen[:, None]
  return np.einsum('bhts,bshe->bthe', weights / weights.sum(-1, keepdims=True), value)


@pytest.mark.parametrize('backend', ['cpu', 'tpu'])
@pytest.mark.parametrize('groups', [4, 2, 1])
def test_dot_product_attention_by_hand(groups, backend, monkeypatch):
  monkeypatch.setattr(
    jax, 'default_backend', lambda: backend
  )  # which code is taken, not where it runs
  query = normal(0, B, T, 4, 6)
  key = normal(1, B, T, groups, 6)
  value = normal(2, B, T, groups, 6)
  keys = np.array([[1, 1, 0, 1, 0], [1, 0, 0, 0, 1]], bool)  # [B, S]
  pairs = normal(3, B, T, T) + 2 * np.eye(T) > 0  # [B, T, S]
  causal = np.tril(np.ones((T, T), bool))

  @jax.jit
  def attend(query, key, value):
    arguments = ((None, False), (keys, False), (pairs, False), (None, True), (keys, True))
    result = []
    for mask, causal in arguments:
      result.append(
        dot_product_attention(query, key.transpose(0, 2, 3, 1), value.swapaxes(1, 2), mask, causal)
      )
    return result

  every = np.ones((B, T, T), bool)
  seens = (every, every & keys[:, None], pairs, every & causal, causal & keys[:, None])
  for found, seen in zip(attend(query, key, value), seens, strict=True):
    close(found, attention_by_hand(query, key, value, seen))


@pytest.mark.parametrize('memory', [False, True], ids=['self', 'cross'])
@pytest.mark.parametrize('kv_heads', [0, 2])
def test_multi_head_attention_by_hand(kv_heads, memory):
  x = normal(0, B, T, D)
  y = normal(1, B, S, D) if memory else x
  module = MultiHeadAttention(4, kv_heads)
  arguments = (x, y if memory else None)
  params = initial(module, *arguments)
  assert params['key']['kernel'].shape == (D, kv_heads or 4, 4)
  mask = np.ones(y.shape[:2], bool)
  mask[1, 2:] = False

  def project(name, x):
    return np.einsum('btd,dhe->bthe', x, params[name]['kernel']) + params[name]['bias']

  attended = attention_by_hand(
    project('query', x), project('key', y), project('value', y), mask[:, None]
  )
  expected = np.einsum('bthe,hed->btd', attended, params['out']['kernel']) + params['out']['bias']
  close(jax.jit(module.apply)({'params': params}, *arguments, mask=mask), expected)


# Embeddings


def test_rotary_turns_pairs_and_scores_depend_on_the_distance_alone():
  query = normal(0, 1, T, 2, 8)
  key = normal(1, 1, T, 2, 8)
  positions = np.array([0, 1, 2, 5, 30])
  # The pair (a, b) as a complex number is multiplied by e^(i p theta) (Su et al. 2021, eq. 34).
  turned = (query[..., :4] + 1j * query[..., 4:]) * np.exp(
    1j * np.outer(positions, 10000 ** -(np.arange(4) / 4))
  )[:, None]
  close(rotate(query, positions), np.concatenate([turned.real, turned.imag], -1))

  def scores(shift):
    return np.einsum(
      'bthe,bshe->hts', rotate(query, positions + shift), rotate(key, positions + shift)
    )

  close(scores(0), scores(17), atol=1e-4)
  assert np.abs(scores(0) - np.einsum('bthe,bshe->hts', query, key)).max() > 0.1


def test_sinusoidal_values():
  table = sinusoidal_table(8, 4)
  close(table[0], [0, 0, 1, 1])
  close(table[3], [np.sin(3), np.sin(0.03), np.cos(3), np.cos(0.03)])
  x = normal(0, 1, 3, 4)
  close(Positions('sinusoidal', 8).apply({}, x, 2), x + table[2:5])


@pytest.mark.parametrize('kind', ['rotary', 'none'])
def test_positions_that_add_nothing(kind):
  x = normal(0, 1, 3, 4)
  out, variables = Positions(kind, 8).init_with_output(jax.random.key(0), x)
  assert not variables
  np.testing.assert_array_equal(out, x)


def test_an_unknown_kind_of_positions_is_refused():
  with pytest.raises(UserError, match='lerned.*learned'):
    Positions('lerned', 8).init(jax.random.key(0), normal(0, 1, 3, 4))


def test_token_embedding_has_unit_size_at_both_ends():
  module = TokenEmbedding(50, 64)
  tokens = np.arange(50)[None]
  x, variables = module.init_with_output(jax.random.key(0), tokens)
  table = variables['params']['table']
  close(x[0], table * 8)
  assert abs(float(x.std()) - 1) < 0.05
  close(module.apply(variables, x, method='logits'), x @ table.T)


def test_a_patch_is_projected_alone_and_in_reading_order():
  images = normal(0, 1, 9, 13, 3)  # what does not fill a patch is cut at the right and below
  module = PatchEmbedding(4, D)
  params = initial(module, images)
  out = jax.jit(module.apply)({'params': params}, images)
  assert out.shape == (1, 6, D)
  patches = np.stack([images[0, y : y + 4, x : x + 4].ravel() for y in (0, 4) for x in (0, 4, 8)])
  close(out[0], patches @ params['projection']['kernel'] + params['projection']['bias'])


# Blocks


@pytest.mark.parametrize(
  'pre_norm, gated, activation',
  [(True, True, 'silu'), (False, False, 'relu'), (False, True, 'gelu')],
)
def test_a_block_by_hand(pre_norm, gated, activation):
  x = normal(0, B, T, D)
  memory = normal(1, B, S, D)
  module = TransformerBlock(4, ffn_dim=24, gated=gated, activation=activation, pre_norm=pre_norm)
  params = initial(module, x, memory=memory)

  def by_hand(x):
    def dense(name, y):
      return y @ params['ffn'][name]['kernel'] + params['ffn'][name]['bias']

    act = getattr(jax.nn, activation)
    layers = {
      'self': lambda y: MultiHeadAttention(4).apply({'params': params['self_attention']}, y),
      'cross': lambda y: MultiHeadAttention(4).apply(
        {'params': params['cross_attention']}, y, memory=memory
      ),
      'ffn': lambda y: dense('down', act(dense('up', y)) * (dense('gate', y) if gated else 1)),
    }
    for name, layer in layers.items():
      norm = params[f'{name}_norm']

      def normed(y, norm=norm):
        return jax.nn.standardize(y, epsilon=1e-6) * norm['scale'] + norm['bias']

      if pre_norm:
        x = x + layer(normed(x))
      else:
        x = normed(x + layer(x))
    return x

  close(jax.jit(module.apply)({'params': params}, x, memory=memory), jax.jit(by_hand)(x))
  assert ('gate' in params['ffn']) == gated
  stack = jax.eval_shape(
    Transformer(1, dict(heads=2, pre_norm=pre_norm)).init, jax.random.key(0), x
  )['params']
  assert ('norm' in stack) == pre_norm  # post-norm ends in a norm already


# The decoder: each configuration is compiled once and asked many questions


DECODERS = {
  'learned': {'positions': 'learned'},
  'sinusoidal-grouped-post-gated-untied': dict(
    positions='sinusoidal', kv_heads=2, pre_norm=False, gated=True, tied=False
  ),
  'rotary-one-group-scanned-remat': dict(positions='rotary', kv_heads=1, scan=True, remat=True),
  'learned-grouped-post-gated-scanned': dict(
    positions='learned', kv_heads=2, pre_norm=False, gated=True, scan=True
  ),
  'rotary-post-untied-no-memory': dict(
    positions='rotary', kv_heads=4, pre_norm=False, tied=False, remat=True, memory=False
  ),
}


class Decoder:
  """`run(tokens [R, T], values [B, S, D], mask [B, S])` -> logits [R, T, V]: teacher-forced, and step by step."""

  def __init__(self, memory=True, **options):
    self.module = TransformerDecoder(
      D, vocab_size=V, max_length=T, layers=2, heads=4, ffn_dim=24, **options
    )
    self.memory = memory
    self.inputs = (
      np.random.default_rng(0).integers(V, size=(B * K, T)),
      normal(1, B, S, D),
      np.ones((B, S), bool),
    )
    self.params = initial(
      self.module, self.inputs[0], Sequence(normal(1, B * K, S, D), None) if memory else None
    )
    self.run = jax.jit(self._run)

  def _run(self, tokens, values, mask):
    if self.memory:
      memory = Sequence(values, mask)
    else:
      memory = None
    if memory:
      repeated = Sequence(*(jnp.repeat(x, K, 0) for x in memory))
    else:
      repeated = None
    return self.module.apply({'params': self.params}, tokens, repeated), self._steps(tokens, memory)

  def _steps(self, tokens, memory):
    own = jnp.broadcast_to(jnp.arange(K)[:, None], (B, K, T))  # no row changes places
    first = DecodeStep(jnp.zeros((), jnp.int32), own)
    step = functools.partial(self.module.apply, method='step')
    _, made = step(
      {'params': self.params}, tokens[:, 0], memory, first, mutable=['cache', 'memory']
    )
    kept = {'params': self.params, 'memory': made.get('memory', {})}

    def body(cache, inputs):
      index, token = inputs
      logits, new = step(
        {**kept, 'cache': cache}, token, memory, DecodeStep(index, own), mutable=['cache']
      )
      return new['cache'], logits

    start = jax.tree.map(jnp.zeros_like, made['cache'])
    return jax.lax.scan(body, start, (jnp.arange(T), tokens.T))[1].swapaxes(0, 1)


@pytest.fixture(scope='module')
def decoder(request):
  return Decoder(**DECODERS[request.param])


every_decoder = pytest.mark.parametrize('decoder', DECODERS, indirect=True)
decoders_with_memory = pytest.mark.parametrize('decoder', list(DECODERS)[:-1], indirect=True)


@every_decoder
def test_steps_with_a_cache_give_the_teacher_forced_logits(decoder):
  values, mask = decoder.inputs[1:]
  full, cached = decoder.run(
    decoder.inputs[0], values, mask & np.array([[1, 1, 1, 1], [1, 0, 1, 0]], bool)
  )
  assert full.std() > 0.3
  close(cached, full, atol=1e-4)


@every_decoder
def test_only_an_untied_output_has_parameters(decoder):
  tied = decoder.module.tied
  assert ('output' in decoder.params) != tied
  assert tied or decoder.params['output']['table'].shape == (V, D)


@every_decoder
def test_the_decoder_is_causal(decoder):
  tokens, *memory = decoder.inputs
  full, cached = decoder.run(tokens, *memory)
  for t in range(T - 1):
    changed = tokens.copy()
    changed[:, t + 1 :] = (changed[:, t + 1 :] + 1) % V
    for before, after in zip((full, cached), decoder.run(changed, *memory)):
      close(before[:, : t + 1], after[:, : t + 1])
      assert (
        np.abs(before[:, t + 1] - after[:, t + 1]).max(-1).min() > 1e-3
      )  # a later token is seen by its own step


@every_decoder
def test_every_earlier_token_is_seen(decoder):
  tokens, *memory = decoder.inputs
  changed = tokens.copy()
  changed[:, 0] = (changed[:, 0] + 1) % V
  for before, after in zip(decoder.run(tokens, *memory), decoder.run(changed, *memory)):
    assert np.abs(before - after).max(-1).min() > 1e-5


@decoders_with_memory
def test_masked_memory_does_not_matter_and_the_rest_does(decoder):
  tokens, values, mask = decoder.inputs
  mask = mask & np.array([[1, 1, 0, 0], [0, 1, 1, 0]], bool)
  other = np.where(mask[..., None], values, 100 * normal(7, B, S, D))
  seen = np.where(mask[..., None], normal(7, B, S, D), values)
  outs = [decoder.run(tokens, v, mask) for v in (values, other, seen)]
  for same, changed, moved in zip(*outs):
    close(same, changed)
    assert np.abs(same - moved).max((1, 2)).min() > 1e-2


@every_decoder
def test_rows_do_not_know_each_other(decoder):
  tokens, values, mask = decoder.inputs
  changed = np.concatenate([tokens[:K], (tokens[K:] + 1) % V])
  other = np.stack([values[0], -values[1]])
  for before, after in zip(decoder.run(tokens, values, mask), decoder.run(changed, other, mask)):
    close(before[:K], after[:K])
    assert np.abs(before[K:] - after[K:]).max((1, 2)).min() > 1e-2


def test_gradients_of_a_causal_stack_do_not_flow_backwards():
  module = Transformer(2, dict(heads=2, causal=True, rotary=True))
  x = normal(0, T, 8)
  params = initial(module, x[None])
  jacobian = jax.jit(jax.jacrev(lambda x: module.apply({'params': params}, x[None])[0]))(
    x
  )  # [T, D, T, D]
  reach = np.abs(jacobian).max((1, 3))
  assert np.all(reach[np.triu_indices(T, 1)] == 0)
  assert np.all(reach[np.tril_indices(T)] > 1e-4)


# Scan, remat, half precision


def stack(scan=False, remat=False, layers=2):
  return Transformer(layers, dict(heads=2, ffn_dim=8, dropout=0.3), scan, remat)


STACK_INPUTS = (normal(0, B, T, D),)


@pytest.fixture(scope='module', params=[False, True], ids=['blocks', 'scan'])
def gradients(request):
  """(scan, parameters, and with dropout on, without remat and with it: loss and gradient)."""
  layers = 1 + request.param
  params = initial(stack(request.param, layers=layers), *STACK_INPUTS)

  @functools.partial(jax.jit, static_argnums=1)
  def value_and_grad(params, remat):
    apply = stack(request.param, remat, layers).apply

    def loss(p):
      return (
        apply({'params': p}, *STACK_INPUTS, train=True, rngs={'dropout': jax.random.key(0)}) ** 3
      ).sum()

    return jax.value_and_grad(loss)(params)

  return request.param, params, value_and_grad(params, False), value_and_grad(params, True)


def test_remat_changes_neither_names_nor_loss_nor_gradient(gradients):
  scan, params, *found = gradients
  shapes = jax.eval_shape(stack(scan, True, 1 + scan).init, jax.random.key(0), *STACK_INPUTS)[
    'params'
  ]
  assert {name: x.shape for name, x in flat(params).items()} == {
    name: x.shape for name, x in flat(shapes).items()
  }
  jax.tree.map(functools.partial(close, rtol=1e-4, atol=1e-3), *found)
  assert ('blocks' in params) == scan


def test_every_layer_learns(gradients):
  scan, _, (_, gradient), _ = gradients
  for name, values in flat(gradient).items():
    if not name.endswith('key/bias'):  # it moves all scores alike: its gradient is 0
      if scan and name.startswith('blocks'):
        layers = values
      else:
        layers = values[None]
      assert np.abs(layers).reshape(len(layers), -1).max(1).min() > 1e-3, name


def test_scan_is_the_same_stack():
  params = initial(stack(True), *STACK_INPUTS)
  unrolled = {
    f'block_{i}': jax.tree.map(lambda x, i=i: x[i], params['blocks']) for i in range(2)
  } | {'norm': params['norm']}
  scanned = jax.jit(stack(True).apply)({'params': params}, *STACK_INPUTS)
  close(scanned, jax.jit(stack().apply)({'params': unrolled}, *STACK_INPUTS))


def test_scanned_layers_start_and_drop_differently():
  x = np.zeros((1, 1, 64), np.float32)
  module = stack(True)
  kernel = jax.jit(lambda key: module.init(key, x)['params']['blocks']['ffn']['up']['kernel'])(
    jax.random.key(0)
  )
  assert np.abs(kernel[0] - kernel[1]).max() > 0.1

  # Each layer adds ones, some dropped: 0, 1 or 2 of them where the layers draw apart, else 0 or 2.
  def added(path, x):
    return np.full(x.shape, float(name_of(path).endswith(('scale', 'down/bias'))), np.float32)

  params = jax.tree_util.tree_map_with_path(added, initial(module, x))
  out = jax.jit(functools.partial(module.apply, train=True))(
    {'params': params}, x, rngs={'dropout': jax.random.key(0)}
  )
  assert len(np.unique(np.round(out, 3))) == 3


def test_half_precision_computes_in_it_and_keeps_parameters_in_single():
  tokens = np.arange(T)[None] % V
  memory = Sequence(normal(0, 1, S, D), np.ones((1, S), bool))
  full, half = (
    TransformerDecoder(D, vocab_size=V, max_length=T, layers=1, heads=2, dtype=dtype)
    for dtype in ('float32', 'bfloat16')
  )
  params = initial(full, tokens, memory)
  abstract = jax.eval_shape(half.init, jax.random.key(0), tokens, memory)['params']
  assert {x.dtype for x in jax.tree.leaves(abstract)} == {jnp.dtype('float32')}
  exact, out = (jax.jit(m.apply)({'params': params}, tokens, memory) for m in (full, half))
  assert out.dtype == jnp.bfloat16
  error = np.abs(out.astype(jnp.float32) - exact)
  assert 1e-5 < error.max() < 0.1 * float(exact.std())


# Encoders

IMAGES = ((2, 32, 32, 3), 16)
ENCODERS = {
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


@pytest.mark.parametrize('name', ENCODERS)
def test_encoders_of_pictures_give_sequences(name):
  module, shape, length = ENCODERS[name]
  x = jax.ShapeDtypeStruct(shape, jnp.float32)
  key = jax.random.key(0)

  def run(mask):
    return jax.eval_shape(lambda x: module.init_with_output(key, x, mask), x)

  for mask in (None, np.array([True, False])):
    out, variables = run(mask)
    assert isinstance(out, Sequence)
    assert (out.values.shape, out.mask.shape, out.mask.dtype) == (
      (2, length, D),
      (2, length),
      jnp.bool_,
    )
    assert out.values.dtype == module.dtype
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype('float32')}
  assert ('backbone' in variables['params']) == (name == 'grid-of-pictures')


def test_the_mask_of_a_missing_picture_covers_its_whole_sequence():
  module = EfficientNetGrid(D)
  x = normal(0, 2, 3, 8)
  mask = jax.jit(lambda mask: module.init_with_output(jax.random.key(0), x, mask)[0].mask)(
    np.array([True, False])
  )
  np.testing.assert_array_equal(mask, [[True] * 3, [False] * 3])


def test_text_encoder_sees_both_ways_and_no_padding():
  module = TextEncoder(D, vocab_size=V, max_length=8, layers=1, heads=2, positions='rotary')
  tokens = np.arange(6)[None] + 2
  mask = np.arange(6)[None] < 4
  params = initial(module, tokens, mask)
  run = jax.jit(lambda tokens, mask: module.apply({'params': params}, tokens, mask).values)
  out = run(tokens, mask)
  close(out[:, :4], run(np.where(mask, tokens, 1), mask)[:, :4])
  last = tokens.copy()
  last[0, 3] = 1
  assert np.abs(out - run(last, mask))[0, 0].max() > 1e-4
  first = tokens.copy()
  first[0, 0] = 1
  assert np.abs(out - run(first, mask))[0, 3].max() > 1e-4


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
def test_what_goes_through_the_fused_kernel_of_a_gpu(
  monkeypatch, capability, dtype, lengths, fused
):
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  monkeypatch.setattr(
    jax, 'devices', lambda: [types.SimpleNamespace(compute_capability=capability)]
  )
  query = jax.ShapeDtypeStruct((1, lengths[0], 4, 64), dtype)
  key = jax.ShapeDtypeStruct((1, 4, 64, lengths[1]), dtype)
  assert attention._fused(query, key) == fused
