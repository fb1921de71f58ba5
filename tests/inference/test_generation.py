"""One model by config alone (a picture and a text in, a text out), its losses and its decoding.

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
from mmlm.decoding.search import SearchOptions, length_penalty
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
close = functools.partial(np.testing.assert_allclose, atol=2e-5, rtol=2e-5)


def model_config(encoders=('image', 'text'), shared=False, **head):
  config = default_config()
  config.model.unlock().update(dim=16, dropout=0.0, shared_embeddings=shared)
  every = {
    'image': {'name': 'vit', 'layers': 1, 'heads': 2, 'patch': 4},
    'text': {'name': 'text_transformer', 'layers': 1, 'heads': 2},
  }
  if recurrent := head.get('name') == 'recurrent_decoder':
    every['text'] = {'name': 'text_recurrent', 'cell': head['cell']}
  config.model.encoders = {name: every[name] for name in encoders}
  if recurrent:
    config.model.head = head
  else:
    config.model.head = {
      'name': 'transformer_decoder',
      'layers': 2,
      'heads': 4,
      'kv_heads': 2,
    } | head
  return complete(config).model


def example_batch(batch=B, text=S, target=T):
  """The same examples whatever the sizes: more rows, more positions of text and of target are padding."""
  rng = np.random.default_rng(0)
  image = rng.normal(size=(B, 8, 8, 3))
  words = rng.integers(4, V, (B, S))
  target_words = rng.integers(4, V, (B, T))
  lengths = np.array([S, 2, 3])
  target_lengths = np.array([T, 3, 2])

  def padded(rows, length, lengths):
    values = np.full((batch, length), PAD, np.int32)
    mask = np.zeros((batch, length), bool)
    for i, (row, n) in enumerate(zip(rows, lengths)):
      values[i, :n], mask[i, :n] = row[:n], True
    return values, mask

  out = {'weight': np.array([1.0] * B + [0.0] * (batch - B), np.float32)}
  out['image'] = np.concatenate([image, np.zeros((batch - B, *image.shape[1:]))]).astype(np.float32)
  out['image_mask'] = out['weight'] > 0
  out['text'], out['text_mask'] = padded(words, text, lengths)
  out['target'], out['target_mask'] = padded(target_words, target, target_lengths)
  return out


class Setup:
  def __init__(self, seed=5, **options):
    self.model = build_model(model_config(**options), vocab_size=V, max_length=8)
    batch = example_batch()
    shapes = jax.eval_shape(self.model.init, jax.random.key(0), batch, batch['target'])['params']
    rng = np.random.default_rng(seed)

    def drawn(path, x):
      kind = path[-1].key
      if kind in ('kernel', 'table', 'positions'):
        scale = 0.5
      else:
        scale = 0.1
      return np.float32((kind == 'scale') + scale * rng.normal(size=x.shape))

    # Far from a fresh start, where all tokens are nearly alike.
    self.params = jax.tree_util.tree_map_with_path(drawn, shapes)
    self.logits = jax.jit(
      lambda batch, inputs: self.model.apply({'params': self.params}, batch, inputs)
    )

  def generate(self, batch, options):
    run = jax.jit(
      lambda batch: TASK.generate(self.model, self.params, batch, options, jax.random.key(0))
    )
    return jax.tree.map(np.asarray, run(batch))


@pytest.fixture(scope='module')
def setup():
  return Setup(3, tied=False)  # a tied output likes to repeat the token it has just read


@pytest.fixture(scope='module')
def inputs():
  return np.random.default_rng(2).integers(4, V, (B, T))


# Several modalities


def test_a_config_makes_the_model(setup):
  assert set(setup.params) == {'encoders_image', 'encoders_text', 'fusion', 'head'}
  assert set(setup.params['fusion']) == {'image_bias', 'text_bias'}

  def encode(batch):
    return setup.model.apply({'params': setup.params}, batch, method='encode')

  memory = jax.eval_shape(encode, example_batch())
  assert memory.values.shape == (B, 4 + S, 16) and memory.mask.shape == (B, 4 + S)


@pytest.mark.parametrize('modality', ['image', 'text'])
def test_what_is_missing_has_no_influence(setup, inputs, modality):
  batch = example_batch()
  mask = batch[f'{modality}_mask'].copy()
  mask[0] = False  # example 0 lacks it
  batch[f'{modality}_mask'] = mask
  before = setup.logits(batch, inputs)
  other = {'image': 10 - batch['image'], 'text': np.where(batch['text'] == 4, 5, 4)}[modality]
  after = setup.logits(batch | {modality: other}, inputs)
  close(before[0], after[0])
  assert np.abs(before - after).max((1, 2))[1:].min() > 1e-2


def test_nothing_at_all_gives_finite_logits_that_depend_on_the_inputs_alone(setup, inputs):
  batch = example_batch()
  batch |= {key: np.zeros_like(batch[key]) for key in ('image_mask', 'text_mask')}
  logits = setup.logits(batch, np.repeat(inputs[:1], B, 0))
  assert np.all(np.isfinite(logits))
  close(logits[0], logits[1])


def test_padding_changes_nothing(setup, inputs):
  """More rows, more text and more target positions, all at once: one more compilation."""
  longer = np.full((B + 2, T + 2), PAD)
  longer[:B, :T] = inputs
  found = setup.logits(example_batch(B + 2, S + 2, T + 2), longer)
  close(found[:B, :T], setup.logits(example_batch(), inputs))


# Losses


def test_losses_are_those_of_the_shifted_target_whatever_fills_the_batch(setup):
  batch = example_batch()
  inputs = np.concatenate([np.full((B, 1), BOS), batch['target'][:, :-1]], 1)
  tokens = optax.softmax_cross_entropy_with_integer_labels(
    setup.logits(batch, inputs), batch['target']
  )
  padded = example_batch(B + 2, S + 2, T + 2)
  padded['target'][B:], padded['target_mask'][B:], padded['image'][B:] = (
    5,
    True,
    1e3,
  )  # weight 0, whatever stands there
  sums, weights = jax.jit(lambda batch: TASK.losses(setup.model, setup.params, batch))(padded)
  close(sums, [*(tokens * batch['target_mask']).sum(1), 0, 0])
  np.testing.assert_array_equal(weights, [T, 3, 2, 0, 0])
  loss = jax.jit(lambda batch: TASK.loss(setup.model, setup.params, batch, 0.0, None))
  close(loss(padded), [sums.sum(), weights.sum()])


def test_dropout_is_on_exactly_where_there_is_a_key():
  config = model_config(encoders=('text',), layers=1)
  config.unlock().dropout = 0.5
  model = build_model(config, vocab_size=V, max_length=8)
  batch = example_batch()
  params = Setup(encoders=('text',), layers=1).params
  loss = jax.jit(lambda rng: TASK.loss(model, params, batch, rng=rng)[0])
  off, on, other = (loss(rng) for rng in (None, jax.random.key(1), jax.random.key(2)))
  assert off != on and on != other
  np.testing.assert_array_equal(on, loss(jax.random.key(1)))


# Decoding


def test_greedy_is_the_argmax_of_the_uncached_model(setup):
  length = T
  batch = example_batch()
  result = setup.generate(example_batch(B + 1), SearchOptions('greedy', max_length=length))
  assert np.all(result.lengths[B:] == 0)  # weight 0 is not decoded
  tokens = np.full((B, length + 1), PAD)
  tokens[:, 0] = BOS
  for t in range(length):
    logits = np.array(setup.logits(batch, tokens[:, :length])[:, t])
    logits[:, [PAD, BOS]] = -np.inf
    tokens[:, t + 1] = logits.argmax(-1)
  assert (
    len(np.unique(tokens[:, 1:], axis=0)) > 1
    and len(np.unique(tokens)) > 4
    and EOS in tokens[:, :-1]
  )
  for found, n, row in zip(result.tokens[:B, 0], result.lengths[:B, 0], tokens[:, 1:].tolist()):
    if EOS in row:
      expected = row[: row.index(EOS) + 1]
    else:
      expected = row
    assert found[:n].tolist() == expected


DECODERS = {
  'transformer': dict(positions='rotary', scan=True, pre_norm=False),
  'lstm': dict(name='recurrent_decoder', cell='lstm', layers=2),
  'gru': dict(name='recurrent_decoder', cell='gru', tied=False),
}
every_decoder = pytest.mark.parametrize('head', DECODERS.values(), ids=list(DECODERS))


@every_decoder
def test_beams_find_the_best_of_all_sequences_as_the_losses_score_them(head):
  """A beam that drops nothing is exact: log-probabilities from the cache against teacher-forced losses."""
  setup = Setup(encoders=('text',), **head)
  length = 2
  words = (UNK, *range(4, V))
  batch = example_batch()
  options = SearchOptions('beam', max_length=length, beam_size=24, n_best=8, length_penalty=0.6)
  result = setup.generate(batch, options)
  heads = [h for n in range(length + 1) for h in itertools.product(words, repeat=n)]
  every = [h if len(h) == length else (*h, EOS) for h in heads]  # [21]
  target = np.full((len(every), length), PAD)
  mask = np.zeros((len(every), length), bool)
  for i, tokens in enumerate(every):
    target[i, : len(tokens)], mask[i, : len(tokens)] = tokens, True
  score = jax.jit(lambda batch: TASK.losses(setup.model, setup.params, batch)[0])
  for b in range(B):
    rows = {key: np.repeat(value[b : b + 1], len(every), 0) for key, value in batch.items()}
    log_probs = -np.asarray(score(rows | {'target': target, 'target_mask': mask}))
    ended = (target == EOS).any(1)
    scores = log_probs / np.asarray(length_penalty(mask.sum(1), 0.6))
    best = sorted(range(len(every)), key=lambda i: (not ended[i], -scores[i]))[:8]
    assert [tuple(row[:n]) for row, n in zip(result.tokens[b], result.lengths[b])] == [
      every[i] for i in best
    ]
    np.testing.assert_allclose(result.scores[b], scores[best], rtol=1e-4)


@every_decoder
def test_a_narrow_beam_is_scored_by_its_own_tokens(head):
  """Hypotheses change places at every step: what a row remembers must follow it."""
  setup = Setup(encoders=('text',), **head)
  batch = example_batch()
  length = T
  n = 3
  result = setup.generate(
    batch, SearchOptions('beam', max_length=length, min_length=length, beam_size=4, n_best=n)
  )
  assert len(np.unique(result.tokens.reshape(-1, length), axis=0)) > B
  rows = {key: np.repeat(value, n, 0) for key, value in batch.items()}
  target = result.tokens.reshape(-1, length)
  mask = np.arange(length) < result.lengths.reshape(-1, 1)
  losses, _ = jax.jit(lambda batch: TASK.losses(setup.model, setup.params, batch))(
    rows | {'target': target, 'target_mask': mask}
  )
  np.testing.assert_allclose(result.log_probs.reshape(-1), -losses, rtol=1e-4)


@pytest.mark.parametrize('tied', [True, False])
@pytest.mark.parametrize(
  'head', [{}, {'name': 'recurrent_decoder', 'cell': 'gru'}], ids=['transformer', 'gru']
)
def test_shared_embeddings_are_one_table_that_learns_from_every_end(head, tied):
  setup = Setup(encoders=('text',), shared=True, tied=tied, **head)
  (table,) = (name for name in flat(setup.params) if 'embeddings' in name or 'tokens' in name)
  batch = example_batch() | {'text': np.full((B, S), 4), 'target': np.full((B, T), 5)}
  gradient = jax.jit(jax.grad(lambda params: TASK.loss(setup.model, params, batch)[0]))(
    setup.params
  )
  rows = np.abs(flat(gradient)[table]).max(1) > 1e-6
  # 4 is read by the encoder alone, the start and 5 by the decoder; a tied output asks how likely every token is.
  assert rows.tolist() == [tied or token in (BOS, 4, 5) for token in range(V)]


@pytest.mark.parametrize('scan', [False, True])
def test_beams_share_the_memory(setup, scan):
  """One copy of the projected memory an example; the past of its beams stands in one cache, which nothing reorders."""
  model = build_model(model_config(scan=scan), vocab_size=V, max_length=8)
  batch = example_batch()
  seen = []
  params = jax.eval_shape(model.init, jax.random.key(0), batch, batch['target'])['params']

  class Spy:
    def apply(self, variables, *args, **kwargs):
      seen.append(variables)
      return model.apply(variables, *args, **kwargs)

  options = SearchOptions('beam', max_length=3, beam_size=4)
  jax.eval_shape(
    lambda params: TASK.generate(Spy(), params, batch, options, jax.random.key(0)), params
  )
  steps = [variables for variables in seen if 'cache' in variables]
  assert steps
  for variables in steps:
    layers = (2,) if scan else ()

    def shapes(kind, variables=variables):
      return {x.shape for x in jax.tree.leaves(variables[kind])}

    assert shapes('memory') == {
      (B, *layers, 2, 4, 4 + S),
      (B, *layers, 2, 4 + S, 4),
    }  # keys, values
    assert shapes('cache') == {(B, *layers, 2, 4, 3 * 4), (B, *layers, 2, 3 * 4, 4)}


def test_generation_is_compiled_for_a_model_without_a_memory():
  """The decoder alone, as a language model uses it."""
  config = model_config()
  config.unlock().encoders = {}
  model = build_model(config, vocab_size=V, max_length=8)
  batch = {'weight': np.ones(B, np.float32)}
  params = jax.eval_shape(model.init, jax.random.key(0), batch, jnp.zeros((B, T), int))['params']
  assert set(params) == {'head'}
  options = SearchOptions('beam', max_length=3, n_best=2)
  out = jax.eval_shape(
    lambda params: TASK.generate(model, params, batch, options, jax.random.key(0)), params
  )
  assert out.tokens.shape == (B, 2, 3)
