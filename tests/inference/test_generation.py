"""A captioning model with a picture and a text as inputs: its losses and its decoding.

Axes: B batch, S memory, T time, N hypotheses, V vocabulary.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mmlm.config import complete, default_config
from mmlm.data.tokenizers.special_tokens import SpecialTokens
from mmlm.decoding.search import length_penalty
from mmlm.decoding.search_options import SearchOptions
from mmlm.models.multimodal import build_model
from mmlm.tasks import TASKS
from mmlm.utils.pytree import flat

BOS = SpecialTokens().bos_id
EOS = SpecialTokens().eos_id
PAD = SpecialTokens().pad_id
UNK = SpecialTokens().unk_id

B = 3
S = 5
T = 6
V = 7
TASK = TASKS['captioning']
ENCODERS = {
  'image': {'name': 'vit', 'layers': 1, 'heads': 2, 'patch': 4},
  'text': {'name': 'text_transformer', 'layers': 1, 'heads': 2},
}
TRANSFORMER = {'name': 'transformer_decoder', 'layers': 2, 'heads': 4, 'kv_heads': 2}
close = functools.partial(np.testing.assert_allclose, atol=2e-5, rtol=2e-5)


def model_config(encoders=('image', 'text'), shared=False, **head):
  config = default_config()
  config.model.unlock().update(dim=16, dropout=0.0, shared_embeddings=shared)
  options = dict(ENCODERS)
  if head.get('name') == 'recurrent_decoder':
    options['text'] = {'name': 'text_recurrent', 'cell': head['cell']}
    config.model.head = head
  else:
    config.model.head = TRANSFORMER | head
  config.model.encoders = {name: options[name] for name in encoders}
  return complete(config).model


def pad_sequences(sequences, lengths, batch_size, length):
  """Returns values and mask [batch_size, length] of sequences cut to `lengths`."""
  values = np.full((batch_size, length), PAD, np.int32)
  mask = np.zeros((batch_size, length), bool)
  for i, (sequence, n) in enumerate(zip(sequences, lengths)):
    values[i, :n] = sequence[:n]
    mask[i, :n] = True
  return values, mask


def example_batch(batch_size=B, text_length=S, target_length=T):
  """Returns the same B examples for all sizes; everything beyond them is padding."""
  rng = np.random.default_rng(0)
  image = rng.normal(size=(B, 8, 8, 3))
  texts = rng.integers(4, V, (B, S))
  targets = rng.integers(4, V, (B, T))
  filling = np.zeros((batch_size - B, *image.shape[1:]))
  batch = {'weight': np.float32(np.arange(batch_size) < B)}
  batch['image'] = np.concatenate([image, filling]).astype(np.float32)
  batch['image_mask'] = batch['weight'] > 0
  batch['text'], batch['text_mask'] = pad_sequences(texts, [S, 2, 3], batch_size, text_length)
  batch['target'], batch['target_mask'] = pad_sequences(
    targets, [T, 3, 2], batch_size, target_length
  )
  return batch


def random_leaf(path, x, rng):
  """Returns parameters far from initial ones, for which all tokens are nearly alike."""
  kind = path[-1].key
  scale = 0.5 if kind in ('kernel', 'table', 'positions') else 0.1
  return np.float32((kind == 'scale') + scale * rng.normal(size=x.shape))


class Setup:
  """A model, its parameters, and its compiled logits."""

  def __init__(self, seed=5, **options):
    self.model = build_model(model_config(**options), vocab_size=V, max_length=8)
    batch = example_batch()
    shapes = jax.eval_shape(self.model.init, jax.random.key(0), batch, batch['target'])
    draw = functools.partial(random_leaf, rng=np.random.default_rng(seed))
    self.params = jax.tree_util.tree_map_with_path(draw, shapes['params'])

    def logits(batch, inputs):
      return self.model.apply({'params': self.params}, batch, inputs)

    def losses(batch):
      return TASK.losses(self.model, self.params, batch)

    self.logits = jax.jit(logits)
    self.losses = jax.jit(losses)

  def generate(self, batch, options):
    def generate(batch):
      return TASK.generate(self.model, self.params, batch, options, jax.random.key(0))

    return jax.device_get(jax.jit(generate)(batch))


@pytest.fixture(scope='module')
def setup():
  # A tied output tends to repeat the token that it has just read.
  return Setup(3, tied=False)


@pytest.fixture(scope='module')
def inputs():
  return np.random.default_rng(2).integers(4, V, (B, T))


# Several modalities


def test_a_config_makes_the_model(setup):
  def encode(batch):
    return setup.model.apply({'params': setup.params}, batch, method='encode')

  memory = jax.eval_shape(encode, example_batch())
  assert set(setup.params) == {'encoders_image', 'encoders_text', 'fusion', 'head'}
  assert set(setup.params['fusion']) == {'image_bias', 'text_bias'}
  assert memory.values.shape == (B, 4 + S, 16)
  assert memory.mask.shape == (B, 4 + S)


@pytest.mark.parametrize('modality', ['image', 'text'])
def test_a_missing_modality_has_no_influence(setup, inputs, modality):
  batch = example_batch()
  changed = {'image': 10 - batch['image'], 'text': np.where(batch['text'] == 4, 5, 4)}
  mask = batch[f'{modality}_mask'].copy()
  mask[0] = False  # example 0 lacks it
  batch[f'{modality}_mask'] = mask
  before = setup.logits(batch, inputs)
  after = setup.logits(batch | {modality: changed[modality]}, inputs)
  differences = np.abs(before - after).max((1, 2))
  close(before[0], after[0])
  assert differences[1:].min() > 1e-2


def test_without_any_modality_logits_depend_on_the_inputs_alone(setup, inputs):
  batch = example_batch()
  for name in ('image_mask', 'text_mask'):
    batch[name] = np.zeros_like(batch[name])
  logits = setup.logits(batch, np.repeat(inputs[:1], B, 0))
  assert np.all(np.isfinite(logits))
  close(logits[0], logits[1])


def test_padding_of_examples_texts_and_targets_changes_nothing(setup, inputs):
  longer = np.full((B + 2, T + 2), PAD)
  longer[:B, :T] = inputs
  logits = setup.logits(example_batch(B + 2, S + 2, T + 2), longer)
  close(logits[:B, :T], setup.logits(example_batch(), inputs))


# Losses


def test_losses_are_cross_entropies_of_the_shifted_target(setup):
  batch = example_batch()
  starts = np.full((B, 1), BOS)
  inputs = np.concatenate([starts, batch['target'][:, :-1]], 1)
  logits = setup.logits(batch, inputs)
  tokens = optax.softmax_cross_entropy_with_integer_labels(logits, batch['target'])
  sums = (tokens * batch['target_mask']).sum(1)
  # Examples of weight 0 may contain anything.
  padded = example_batch(B + 2, S + 2, T + 2)
  padded['target'][B:] = 5
  padded['target_mask'][B:] = True
  padded['image'][B:] = 1e3
  losses, weights = setup.losses(padded)
  close(losses, [*sums, 0, 0])
  np.testing.assert_array_equal(weights, [T, 3, 2, 0, 0])
  loss = jax.jit(lambda batch: TASK.loss(setup.model, setup.params, batch, 0.0, None))
  close(loss(padded), [losses.sum(), weights.sum()])


def test_dropout_is_on_exactly_if_there_is_a_key():
  config = model_config(encoders=('text',), layers=1)
  config.unlock().dropout = 0.5
  model = build_model(config, vocab_size=V, max_length=8)
  params = Setup(encoders=('text',), layers=1).params
  batch = example_batch()
  loss = jax.jit(lambda rng: TASK.loss(model, params, batch, rng=rng)[0])
  without = loss(None)
  first = loss(jax.random.key(1))
  second = loss(jax.random.key(2))
  assert without != first
  assert first != second
  np.testing.assert_array_equal(first, loss(jax.random.key(1)))


# Decoding


def test_greedy_is_the_argmax_of_the_uncached_model(setup):
  batch = example_batch()
  result = setup.generate(example_batch(B + 1), SearchOptions('greedy', max_length=T))
  tokens = np.full((B, T + 1), PAD)
  tokens[:, 0] = BOS
  for t in range(T):
    logits = np.array(setup.logits(batch, tokens[:, :T])[:, t])
    logits[:, [PAD, BOS]] = -np.inf
    tokens[:, t + 1] = logits.argmax(-1)
  # The examples are no trivial ones: hypotheses differ, and some end early.
  assert len(np.unique(tokens[:, 1:], axis=0)) > 1
  assert len(np.unique(tokens)) > 4
  assert EOS in tokens[:, :-1]
  assert np.all(result.lengths[B:] == 0)  # weight 0 is not decoded
  for i in range(B):
    expected = tokens[i, 1:].tolist()
    if EOS in expected:
      expected = expected[: expected.index(EOS) + 1]
    length = result.lengths[i, 0]
    assert result.tokens[i, 0, :length].tolist() == expected


DECODERS = {
  'transformer': dict(positions='rotary', scan=True, pre_norm=False),
  'lstm': dict(name='recurrent_decoder', cell='lstm', layers=2),
  'gru': dict(name='recurrent_decoder', cell='gru', tied=False),
}


@pytest.fixture(scope='module', params=DECODERS)
def text_setup(request):
  return Setup(encoders=('text',), **DECODERS[request.param])


def all_hypotheses(length):
  """Returns every sequence of at most `length` tokens that is ended or has this length."""
  words = (UNK, *range(4, V))
  hypotheses = []
  for n in range(length + 1):
    for tokens in itertools.product(words, repeat=n):
      hypotheses.append(tokens if n == length else (*tokens, EOS))
  return hypotheses


def test_a_beam_that_drops_nothing_finds_the_best_hypotheses(text_setup):
  """Log-probabilities from the cache are compared with teacher-forced losses."""
  length = 2
  batch = example_batch()
  options = SearchOptions('beam', max_length=length, beam_size=24, n_best=8, length_penalty=0.6)
  result = text_setup.generate(batch, options)
  hypotheses = all_hypotheses(length)  # 21
  lengths = [len(tokens) for tokens in hypotheses]
  target, mask = pad_sequences(hypotheses, lengths, len(hypotheses), length)
  ended = (target == EOS).any(1)
  penalty = np.asarray(length_penalty(mask.sum(1), 0.6))
  for b in range(B):
    copies = {name: np.repeat(array[b : b + 1], len(target), 0) for name, array in batch.items()}
    losses, _ = text_setup.losses(copies | {'target': target, 'target_mask': mask})
    scores = -np.asarray(losses) / penalty
    best = sorted(range(len(target)), key=lambda i: (not ended[i], -scores[i]))[:8]
    beams = [tuple(tokens[:n]) for tokens, n in zip(result.tokens[b], result.lengths[b])]
    assert beams == [hypotheses[i] for i in best]
    np.testing.assert_allclose(result.scores[b], scores[best], rtol=1e-4)


def test_a_narrow_beam_is_scored_by_its_own_tokens(text_setup):
  """Hypotheses change places at every step: the cache of a beam must follow it."""
  beams = 3
  batch = example_batch()
  options = SearchOptions('beam', max_length=T, min_length=T, beam_size=4, n_best=beams)
  result = text_setup.generate(batch, options)
  target = result.tokens.reshape(-1, T)
  mask = np.arange(T) < result.lengths.reshape(-1, 1)
  copies = {name: np.repeat(array, beams, 0) for name, array in batch.items()}
  losses, _ = text_setup.losses(copies | {'target': target, 'target_mask': mask})
  assert len(np.unique(target, axis=0)) > B
  np.testing.assert_allclose(result.log_probs.reshape(-1), -losses, rtol=1e-4)


HEADS = {'transformer': {}, 'gru': {'name': 'recurrent_decoder', 'cell': 'gru'}}


@pytest.mark.parametrize('tied', [True, False])
@pytest.mark.parametrize('head', HEADS)
def test_a_shared_embedding_table_learns_from_encoder_and_decoder(head, tied):
  setup = Setup(encoders=('text',), shared=True, tied=tied, **HEADS[head])
  tables = [name for name in flat(setup.params) if 'embeddings' in name or 'tokens' in name]
  batch = example_batch() | {'text': np.full((B, S), 4), 'target': np.full((B, T), 5)}

  def loss(params):
    return TASK.loss(setup.model, params, batch)[0]

  gradient = flat(jax.jit(jax.grad(loss))(setup.params))
  (table,) = tables
  learns = np.abs(gradient[table]).max(1) > 1e-6
  # The encoder reads 4, the decoder BOS and 5; a tied output scores every token.
  assert learns.tolist() == [tied or token in (BOS, 4, 5) for token in range(V)]


class Spy:
  """A model that records the variables of its calls."""

  def __init__(self, model):
    self.model = model
    self.calls = []

  def apply(self, variables, *args, **kwargs):
    self.calls.append(variables)
    return self.model.apply(variables, *args, **kwargs)


@pytest.mark.parametrize('scan', [False, True])
def test_beams_share_the_memory(scan):
  """The projected memory has one copy an example; one cache has the past of all its beams."""
  spy = Spy(build_model(model_config(scan=scan), vocab_size=V, max_length=8))
  batch = example_batch()
  shapes = jax.eval_shape(spy.model.init, jax.random.key(0), batch, batch['target'])
  options = SearchOptions('beam', max_length=3, beam_size=4)

  def generate(params):
    return TASK.generate(spy, params, batch, options, jax.random.key(0))

  jax.eval_shape(generate, shapes['params'])
  layers = (2,) if scan else ()
  steps = [variables for variables in spy.calls if 'cache' in variables]
  assert steps
  for variables in steps:
    memory = {x.shape for x in jax.tree.leaves(variables['memory'])}
    cache = {x.shape for x in jax.tree.leaves(variables['cache'])}
    # keys and values
    assert memory == {(B, *layers, 2, 4, 4 + S), (B, *layers, 2, 4 + S, 4)}
    assert cache == {(B, *layers, 2, 4, 3 * 4), (B, *layers, 2, 3 * 4, 4)}


def test_a_model_without_a_memory_generates():
  """The decoder alone is a language model."""
  config = model_config()
  config.unlock().encoders = {}
  model = build_model(config, vocab_size=V, max_length=8)
  batch = {'weight': np.ones(B, np.float32)}
  inputs = jnp.zeros((B, T), int)
  params = jax.eval_shape(model.init, jax.random.key(0), batch, inputs)['params']
  options = SearchOptions('beam', max_length=3, n_best=2)

  def generate(params):
    return TASK.generate(model, params, batch, options, jax.random.key(0))

  result = jax.eval_shape(generate, params)
  assert set(params) == {'head'}
  assert result.tokens.shape == (B, 2, 3)
