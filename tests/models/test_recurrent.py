"""Recurrent networks: padding changes nothing, one step after another gives the teacher-forced numbers, and nothing sees the future.

Axes: B batch, K rows an example, R = B * K, T time, S memory, D width, V vocabulary.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_models import initial, normal

from mmlm.models.attention import DecodeStep
from mmlm.models.embeddings import TokenEmbedding
from mmlm.models.encoders.feature_encoders import FeatureRecurrent
from mmlm.models.encoders.text_encoders import RecurrentEncoder
from mmlm.models.heads.recurrent_decoder import RecurrentDecoder
from mmlm.models.sequence import Sequence
from mmlm.utils.errors import UserError
from mmlm.utils.pytree import flat

B = 2
K = 3
T = 5
S = 4
D = 8
V = 9
close = functools.partial(np.testing.assert_allclose, atol=2e-5, rtol=2e-5)
cells = pytest.mark.parametrize('cell', ['lstm', 'gru'])


@cells
def test_the_encoder_sees_both_ways_and_no_padding(cell):
  module = RecurrentEncoder(D, vocab_size=V, layers=2, cell=cell)
  tokens = np.random.default_rng(0).integers(V, size=(3, 6))
  lengths = np.array([6, 4, 0])
  mask = np.arange(6) < lengths[:, None]
  params = initial(module, tokens, mask)
  run = jax.jit(lambda tokens, mask: module.apply({'params': params}, tokens, mask))
  out = run(tokens, mask)
  assert np.all(np.isfinite(out.values)) and np.array_equal(out.mask, mask)
  other = run(np.where(mask, tokens, (tokens + 1) % V), mask)
  longer = run(np.pad(tokens, ((0, 0), (0, 2))), np.pad(mask, ((0, 0), (0, 2))))
  for found in (other.values, longer.values[:, :6]):
    close(np.where(mask[..., None], found, 0), np.where(mask[..., None], out.values, 0))
  for changed, seen in (
    (0, 3),
    (3, 0),
  ):  # the last real token of example 1 by its first, and the other way round
    moved = tokens.copy()
    moved[:, changed] = (moved[:, changed] + 1) % V
    assert np.abs(run(moved, mask).values - out.values)[:2, seen].max(-1).min() > 1e-4


def test_noise_is_of_training_alone_and_as_large_as_it_says():
  """In deviations of the features, and both together have a deviation of 1."""
  noisy = FeatureRecurrent(D, width=3, noise=2.0)
  quiet = FeatureRecurrent(D, width=3)
  x = np.random.default_rng(0).normal(size=(400, 6, 3)).astype(np.float32)
  mask = np.arange(6) < np.random.default_rng(1).integers(1, 7, size=(400, 1))
  params = initial(quiet, x, mask)

  @functools.partial(jax.jit, static_argnums=(0, 1))
  def run(module, train, x, mask, key=0):
    if train:
      rngs = {'dropout': jax.random.key(key)}
    else:
      rngs = {}
    out, seen = module.apply(
      {'params': params}, x, mask, train, rngs=rngs, capture_intermediates=True
    )
    return out.values, seen['intermediates']['projection']['__call__'][0]

  close(run(noisy, False, x, mask)[0], run(quiet, False, x / 5**0.5, mask)[0])

  # The projection is linear, so what it saw is found from what it became.
  def found(y):
    return np.linalg.lstsq(
      np.asarray(params['projection']['kernel']).T, np.asarray(y)[mask].T, rcond=None
    )[0].T

  seen = found(run(noisy, True, x, mask)[1])
  np.testing.assert_allclose(seen.std(0), 1, rtol=0.1)
  np.testing.assert_allclose(
    (seen - found(run(noisy, False, x, mask)[1])).std(0), 2 / 5**0.5, rtol=0.1
  )
  assert np.all(np.isfinite(run(noisy, True, x, np.zeros_like(mask))[0]))


# The decoder: each configuration is compiled once and asked many questions

DECODERS = {
  'lstm': {},
  'gru-two-layers-untied': dict(cell='gru', layers=2, tied=False),
  'lstm-two-layers-no-memory': dict(layers=2, memory=False),
  'gru-no-memory': dict(cell='gru', memory=False),
}


class Decoder:
  """`run(tokens [R, T], values [B, S, D], mask [B, S])` -> logits [R, T, V]: teacher-forced, and step by step."""

  def __init__(self, memory=True, **options):
    self.module = RecurrentDecoder(D, vocab_size=V, **options)
    self.memory = memory
    self.inputs = (
      np.random.default_rng(0).integers(V, size=(B * K, T)),
      normal(1, B, S, D),
      np.array([[1, 1, 1, 1], [1, 0, 1, 0]], bool),
    )
    self.params = initial(
      self.module,
      self.inputs[0],
      Sequence(normal(1, B * K, S, D), np.ones((B * K, S), bool)) if memory else None,
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
    def at(index):
      return DecodeStep(index, jnp.zeros((B, K, T), int))

    step = functools.partial(self.module.apply, method='step')
    _, made = step(
      {'params': self.params},
      tokens[:, 0],
      memory,
      at(jnp.zeros((), int)),
      mutable=['cache', 'memory'],
    )
    kept = {'params': self.params, 'memory': made['memory']}

    def body(cache, inputs):
      index, token = inputs
      logits, new = step({**kept, 'cache': cache}, token, memory, at(index), mutable=['cache'])
      return new['cache'], logits

    start = jax.tree.map(lambda x: jnp.full_like(x, 7), made['cache'])  # whatever stood in it
    return jax.lax.scan(body, start, (jnp.arange(T), tokens.T))[1].swapaxes(0, 1)


@pytest.fixture(scope='module')
def decoder(request):
  return Decoder(**DECODERS[request.param])


every_decoder = pytest.mark.parametrize('decoder', DECODERS, indirect=True)
decoders_with_memory = pytest.mark.parametrize('decoder', list(DECODERS)[:2], indirect=True)


@every_decoder
def test_steps_of_beams_that_share_a_memory_give_the_teacher_forced_logits(decoder):
  full, stepped = decoder.run(*decoder.inputs)
  assert full.std() > 0.1
  close(stepped, full)


@every_decoder
def test_every_earlier_token_is_seen_and_no_later_one(decoder):
  tokens, *memory = decoder.inputs
  full, stepped = decoder.run(tokens, *memory)
  for t in range(T):
    changed = tokens.copy()
    changed[:, t] = (changed[:, t] + 1) % V
    for before, after in zip((full, stepped), decoder.run(changed, *memory)):
      close(before[:, :t], after[:, :t])
      assert np.abs(before[:, t:] - after[:, t:]).max(-1).min() > 1e-5


@decoders_with_memory
def test_masked_memory_does_not_matter_and_the_rest_does(decoder):
  tokens, values, mask = decoder.inputs
  other = np.where(mask[..., None], values, 100 * normal(7, B, S, D))
  seen = values + np.where(np.arange(S)[:, None] == 2, 1, 0).astype(np.float32)
  for same, changed, moved in zip(*(decoder.run(tokens, v, mask) for v in (values, other, seen))):
    close(same, changed)
    assert np.abs(same - moved).max((1, 2)).min() > 1e-3
  for out in decoder.run(tokens, values, np.zeros_like(mask)):
    assert np.all(np.isfinite(out))


@every_decoder
def test_rows_do_not_know_each_other(decoder):
  tokens, values, mask = decoder.inputs
  changed = np.concatenate([tokens[:K], (tokens[K:] + 1) % V])
  for before, after in zip(
    decoder.run(*decoder.inputs), decoder.run(changed, np.stack([values[0], -values[1]]), mask)
  ):
    close(before[:K], after[:K])
    assert np.abs(before[K:] - after[K:]).max((1, 2)).min() > 1e-3


@pytest.mark.parametrize('tied', [True, False])
def test_gradients_reach_every_parameter(tied):
  tokens = np.array([[1, 2, 3, 4], [5, 6, 7, 8]])
  mask = np.array([[1, 1, 1, 1], [1, 1, 1, 0]], bool)
  encoder = RecurrentEncoder(D, vocab_size=V, layers=2)
  decoder = RecurrentDecoder(D, vocab_size=V, layers=2, tied=tied)
  params = (
    initial(encoder, tokens, mask),
    initial(decoder, tokens, Sequence(normal(0, B, S, D), mask)),
  )
  assert ('output' in params[1]) != tied

  @jax.jit
  @jax.grad
  def gradient(params):
    memory = encoder.apply({'params': params[0]}, tokens, mask)
    return (decoder.apply({'params': params[1]}, tokens, memory) ** 3).sum()

  for part in gradient(params):
    for name, value in flat(part).items():
      assert np.abs(value).max() > 1e-5, name


def test_embeddings_of_another_part_take_the_place_of_its_own():
  class Both(RecurrentDecoder):
    def setup(self):
      self.shared = TokenEmbedding(V, D)
      self.encoder = RecurrentEncoder(D, vocab_size=V, embeddings=self.shared)
      self.decoder = RecurrentDecoder(D, vocab_size=V, embeddings=self.shared)

    def __call__(self, tokens, mask):
      return self.decoder(tokens, self.encoder(tokens, mask))

  shapes = jax.eval_shape(
    Both(D, vocab_size=V).init, jax.random.key(0), np.zeros((B, T), int), np.ones((B, T), bool)
  )['params']
  assert [name for name in flat(shapes) if 'table' in name] == ['shared/table']


def test_an_unknown_cell_is_refused():
  with pytest.raises(UserError, match="lsmt.*'lstm'"):
    RecurrentEncoder(D, vocab_size=V, cell='lsmt').init(
      jax.random.key(0), np.zeros((1, 2), int), np.ones((1, 2), bool)
    )
  with pytest.raises(UserError, match="gruu.*'gru'"):
    RecurrentDecoder(D, vocab_size=V, cell='gruu').init(
      jax.random.key(0), np.zeros((1, 2), int), None
    )
