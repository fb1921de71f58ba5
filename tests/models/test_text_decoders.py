"""Decoders of text: causal, cached = teacher-forced, independent of other examples and of padding.

Axes: B batch, K beams an example, R = B * K, T time, S memory, D width, V vocabulary.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_helpers import close, initial, normal

from mmlm.models.attention import DecodeStep
from mmlm.models.embeddings import TokenEmbedding
from mmlm.models.encoders.text_encoders import RecurrentEncoder
from mmlm.models.heads import TransformerDecoder
from mmlm.models.heads.recurrent_decoder import RecurrentDecoder
from mmlm.models.sequence import Sequence
from mmlm.utils.errors import UserError
from mmlm.utils.pytree import flat

B = 2
K = 2
T = 5
S = 4
D = 16
V = 9

transformer = functools.partial(
  TransformerDecoder, D, vocab_size=V, max_length=T, layers=2, heads=4, ffn_dim=24
)
recurrent = functools.partial(RecurrentDecoder, D, vocab_size=V)

WITH_MEMORY = {
  'learned': transformer(positions='learned'),
  'sinusoidal-grouped-post-gated-untied': transformer(
    positions='sinusoidal', kv_heads=2, pre_norm=False, gated=True, tied=False
  ),
  'rotary-one-group-scanned-remat': transformer(
    positions='rotary', kv_heads=1, scan=True, remat=True
  ),
  'learned-grouped-post-gated-scanned': transformer(
    positions='learned', kv_heads=2, pre_norm=False, gated=True, scan=True
  ),
  'lstm': recurrent(),
  'gru-two-layers-untied': recurrent(cell='gru', layers=2, tied=False),
}
WITHOUT_MEMORY = {
  'rotary-post-untied-no-memory': transformer(
    positions='rotary', kv_heads=4, pre_norm=False, tied=False, remat=True
  ),
  'lstm-two-layers-no-memory': recurrent(layers=2),
  'gru-no-memory': recurrent(cell='gru'),
}
DECODERS = WITH_MEMORY | WITHOUT_MEMORY


class CompiledDecoder:
  """A decoder with random parameters, compiled once.

  `run(tokens [R, T], values [B, S, D], mask [B, S])` returns logits [R, T, V] twice:
  teacher-forced, and step by step with a cache.
  """

  def __init__(self, module, has_memory):
    self.module = module
    self.has_memory = has_memory
    self.tokens = np.random.default_rng(0).integers(V, size=(B * K, T))
    self.values = normal(1, B, S, D)
    self.mask = np.array([[1, 1, 1, 1], [1, 0, 1, 0]], bool)
    memory = None
    if has_memory:
      memory = Sequence(normal(1, B * K, S, D), np.ones((B * K, S), bool))
    self.params = initial(module, self.tokens, memory)
    self.run = jax.jit(self._run)

  def _run(self, tokens, values, mask):
    memory = None
    repeated = None
    if self.has_memory:
      memory = Sequence(values, mask)
      repeated = Sequence(jnp.repeat(values, K, 0), jnp.repeat(mask, K, 0))
    full = self.module.apply({'params': self.params}, tokens, repeated)
    return full, self._steps(tokens, memory)

  def _steps(self, tokens, memory):
    writers = jnp.broadcast_to(jnp.arange(K)[:, None], (B, K, T))  # no beams are reordered
    step = functools.partial(self.module.apply, method='step')
    variables = {'params': self.params}
    first = DecodeStep(jnp.zeros((), jnp.int32), writers)
    _, created = step(variables, tokens[:, 0], memory, first, mutable=['cache', 'memory'])
    variables['memory'] = created.get('memory', {})

    def body(cache, inputs):
      index, token = inputs
      position = DecodeStep(index, writers)
      cached = {**variables, 'cache': cache}
      logits, new = step(cached, token, memory, position, mutable=['cache'])
      return new['cache'], logits

    # A recurrent decoder must ignore what is in the cache at its first step.
    start = 7 if isinstance(self.module, RecurrentDecoder) else 0
    cache = jax.tree.map(lambda x: jnp.full_like(x, start), created['cache'])
    _, logits = jax.lax.scan(body, cache, (jnp.arange(T), tokens.T))
    return logits.swapaxes(0, 1)

  def outputs(self, tokens=None, values=None, mask=None):
    """Runs the decoder with some of its inputs changed."""
    return self.run(
      self.tokens if tokens is None else tokens,
      self.values if values is None else values,
      self.mask if mask is None else mask,
    )


@pytest.fixture(scope='module')
def decoder(request):
  return CompiledDecoder(DECODERS[request.param], request.param in WITH_MEMORY)


every_decoder = pytest.mark.parametrize('decoder', DECODERS, indirect=True)
decoders_with_memory = pytest.mark.parametrize('decoder', WITH_MEMORY, indirect=True)


@every_decoder
def test_steps_with_a_cache_give_the_teacher_forced_logits(decoder):
  full, cached = decoder.outputs()
  assert full.std() > 0.1
  close(cached, full, atol=1e-4)


@every_decoder
def test_only_an_untied_output_has_parameters(decoder):
  tied = decoder.module.tied
  assert ('output' in decoder.params) != tied
  assert tied or decoder.params['output']['table'].shape == (V, D)


@every_decoder
def test_a_token_changes_its_own_and_later_logits_alone(decoder):
  outputs = decoder.outputs()
  for t in range(T):
    tokens = decoder.tokens.copy()
    tokens[:, t] = (tokens[:, t] + 1) % V
    for before, after in zip(outputs, decoder.outputs(tokens)):
      close(before[:, :t], after[:, :t])
      assert np.abs(before[:, t:] - after[:, t:]).max(-1).min() > 1e-5


@decoders_with_memory
def test_only_unmasked_memory_changes_logits(decoder):
  mask = decoder.mask & np.array([[1, 1, 0, 0], [0, 1, 1, 0]], bool)
  masked = ~mask[..., None]
  noise = normal(7, B, S, D)
  original = decoder.outputs(mask=mask)
  garbage = decoder.outputs(values=np.where(masked, 100 * noise, decoder.values), mask=mask)
  moved = decoder.outputs(values=np.where(masked, decoder.values, noise), mask=mask)
  for before, same, different in zip(original, garbage, moved):
    close(before, same)
    assert np.abs(before - different).max((1, 2)).min() > 1e-3


@decoders_with_memory
def test_an_empty_memory_gives_finite_logits(decoder):
  for logits in decoder.outputs(mask=np.zeros_like(decoder.mask)):
    assert np.all(np.isfinite(logits))


@every_decoder
def test_examples_of_a_batch_do_not_change_each_other(decoder):
  tokens = np.concatenate([decoder.tokens[:K], (decoder.tokens[K:] + 1) % V])
  values = np.stack([decoder.values[0], -decoder.values[1]])
  for before, after in zip(decoder.outputs(), decoder.outputs(tokens, values)):
    close(before[:K], after[:K])
    assert np.abs(before[K:] - after[K:]).max((1, 2)).min() > 1e-3


# Recurrent networks


@pytest.mark.parametrize('tied', [True, False])
def test_gradients_reach_every_parameter_of_recurrent_networks(tied):
  tokens = np.array([[1, 2, 3, 4], [5, 6, 7, 8]])
  mask = np.array([[1, 1, 1, 1], [1, 1, 1, 0]], bool)
  encoder = RecurrentEncoder(D, vocab_size=V, layers=2)
  decoder = recurrent(layers=2, tied=tied)
  encoder_params = initial(encoder, tokens, mask)
  decoder_params = initial(decoder, tokens, Sequence(normal(0, B, S, D), mask))

  @jax.jit
  @functools.partial(jax.grad, argnums=(0, 1))
  def gradients(encoder_params, decoder_params):
    memory = encoder.apply({'params': encoder_params}, tokens, mask)
    logits = decoder.apply({'params': decoder_params}, tokens, memory)
    return (logits**3).sum()

  for gradient in gradients(encoder_params, decoder_params):
    for name, value in flat(gradient).items():
      assert np.abs(value).max() > 1e-5, name


def test_shared_embeddings_replace_those_of_each_part():
  class Both(RecurrentDecoder):
    def setup(self):
      self.shared = TokenEmbedding(V, D)
      self.encoder = RecurrentEncoder(D, vocab_size=V, embeddings=self.shared)
      self.decoder = recurrent(embeddings=self.shared)

    def __call__(self, tokens, mask):
      return self.decoder(tokens, self.encoder(tokens, mask))

  params = initial(Both(D, vocab_size=V), np.zeros((B, T), int), np.ones((B, T), bool))
  assert [name for name in flat(params) if 'table' in name] == ['shared/table']


def test_an_unknown_cell_is_an_error():
  tokens = np.zeros((1, 2), int)
  encoder = RecurrentEncoder(D, vocab_size=V, cell='lsmt')
  with pytest.raises(UserError, match="lsmt.*'lstm'"):
    encoder.init(jax.random.key(0), tokens, np.ones((1, 2), bool))
  with pytest.raises(UserError, match="gruu.*'gru'"):
    recurrent(cell='gruu').init(jax.random.key(0), tokens, None)
