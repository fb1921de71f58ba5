"""Recognition by CTC, by a decoder, and by both: their losses, what cannot be aligned, and searches
with language models beside.

Axes: B batch, S rows of features, C values of a row, T time, V vocabulary.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmlm.config import complete, default_config
from mmlm.data.tokenizers.special_tokens import SpecialTokens
from mmlm.decoding import ctc
from mmlm.decoding.ngram import begin_ngram, train_ngram
from mmlm.decoding.score_fusion import Fusion, Scorer
from mmlm.decoding.search_options import SearchOptions
from mmlm.models.multimodal import build_model
from mmlm.tasks import TASKS
from mmlm.tasks.text_generation import begin_decoder
from mmlm.training.losses import ctc_losses

BOS = SpecialTokens().bos_id
EOS = SpecialTokens().eos_id
PAD = SpecialTokens().pad_id

B = 3
S = 16
C = 4
T = 5
V = 7
D = 16
TASK = TASKS['recognition']
close = functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-5)
HEADS = {
  'ctc': {'name': 'ctc'},
  'joint': {'name': 'joint', 'layers': 1, 'heads': 2, 'ctc_weight': 0.4},
  'joint_recurrent': {'name': 'joint_recurrent', 'ctc_weight': 0.4},
}


def example_batch(batch=B, rows=S, target=T, transcript=False):
  """The same examples whatever the sizes: more rows, more positions of text and of target are
  padding.
  """
  rng = np.random.default_rng(0)
  audio = rng.normal(size=(B, S, C))
  words = rng.integers(4, V, (B, T))
  lengths = (S, 9, 13)
  tokens = (T, 3, 4)
  out = {
    'weight': np.float32(np.arange(batch) < B),
    'audio': np.zeros((batch, rows, C), np.float32),
  }
  out |= {
    'audio_mask': np.zeros((batch, rows), bool),
    'target': np.full((batch, target), PAD),
    'target_mask': np.zeros((batch, target), bool),
  }
  for i, (n, m) in enumerate(zip(lengths, tokens)):
    out['audio'][i, :n], out['audio_mask'][i, :n] = audio[i, :n], True
    out['target'][i, :m], out['target_mask'][i, :m] = [*words[i, : m - 1], EOS], True
  if transcript:
    out['transcript'], out['transcript_mask'] = (
      np.array([[4, 5, 4], [6, 0, 0], [0, 0, 0]]),
      np.array([[1, 1, 1], [1, 0, 0], [0, 0, 0]], bool),
    )
  return out


class Setup:
  def __init__(self, head, **options):
    config = default_config()
    config.model.unlock().update(dim=D, dropout=0.0)
    config.model.encoders = {
      'audio': {
        'name': 'audio_transformer',
        'width': C,
        'subsampling': 2,
        'channels': 2,
        'layers': 1,
        'heads': 2,
      }
    }
    config.model.head = HEADS[head] | options
    self.model = build_model(complete(config).model, V, 16)
    batch = example_batch()
    shapes = jax.eval_shape(self.model.init, jax.random.key(0), batch, batch['target'])['params']
    rng = np.random.default_rng(3)

    def scale(path):
      if path[-1].key in ('kernel', 'table', 'positions'):
        return 0.6
      return 0.1

    self.params = jax.tree_util.tree_map_with_path(
      lambda path, x: np.float32(
        (path[-1].key == 'scale') + scale(path) * rng.normal(size=x.shape)
      ),
      shapes,
    )
    self.losses = jax.jit(lambda batch: TASK.losses(self.model, self.params, batch))

  def generate(self, batch, options, fusion=Fusion()):  # noqa: B008 it holds nothing
    run = jax.jit(
      lambda batch: TASK.generate(
        self.model, self.params, batch, options, jax.random.key(0), fusion
      )
    )
    return jax.tree.map(np.asarray, run(batch))

  def apply(self, method, *args):
    return self.model.apply({'params': self.params}, *args, method=method)

  def ctc(self, batch, labels, mask):
    """Losses of the CTC branch for labels, by itself."""
    memory = self.apply('encode', batch)
    return ctc_losses(
      self.apply('ctc_logits', memory), memory.mask, jnp.array(labels), jnp.array(mask)
    )[0]


@functools.cache
def setup_of(head, **options):
  return Setup(head, **options)


every_head = pytest.mark.parametrize('head', HEADS)


def words_of(batch):
  return batch['target'], batch['target_mask'] & (batch['target'] != EOS)


# Losses


@every_head
def test_padding_changes_no_loss_and_the_sums_agree(head):
  setup = setup_of(head)
  batch = example_batch()
  sums, weights = setup.losses(batch)
  wide = example_batch(B + 1, S + 6, T + 3)
  wide['audio'] = np.where(wide['audio_mask'][..., None], wide['audio'], 9)
  wide['target'][B:], wide['target_mask'][B:] = 5, True  # weight 0, whatever stands there
  found, counts = setup.losses(wide)
  close(found, [*sums, 0])
  assert counts.tolist() == [*weights, 0]
  assert weights.tolist() == [4, 2, 3] if head == 'ctc' else [5, 3, 4]  # CTC writes no end
  total, weight = jax.jit(lambda batch: TASK.loss(setup.model, setup.params, batch))(wide)
  close([total, weight], [sums.sum(), weights.sum()])


@pytest.mark.parametrize('head', ['joint', 'joint_recurrent'])
def test_the_joint_loss_is_the_weighted_sum_of_both_and_encodes_once(head):
  setup = setup_of(head)
  batch = example_batch()
  aligned = setup.ctc(batch, *words_of(batch))
  inputs = np.concatenate([np.full((B, 1), BOS), batch['target'][:, :-1]], 1)
  logits = setup.apply('__call__', batch, inputs)
  tokens = -jnp.take_along_axis(jax.nn.log_softmax(logits), batch['target'][..., None], 2)[..., 0]
  close(setup.losses(batch)[0], 0.6 * (tokens * batch['target_mask']).sum(1) + 0.4 * aligned)
  calls = []

  class Spy:
    head = setup.model.head
    special_tokens = setup.model.special_tokens

    def apply(self, *args, method, **kwargs):
      calls.append(method)
      return setup.model.apply(*args, method=method, **kwargs)

  jax.eval_shape(lambda params: TASK.loss(Spy(), params, batch), setup.params)
  assert calls == ['branches']


def test_ctc_learns_the_transcript_where_the_head_says_so():
  setup = setup_of('joint', ctc_labels='transcript')
  batch = example_batch(transcript=True)
  aligned = setup.ctc(batch, batch['transcript'], batch['transcript_mask'])
  assert aligned[2] == 0  # it has none
  nothing = {key: value for key, value in batch.items() if not key.startswith('transcript')}
  decoder = setup.losses(nothing)[0]
  close(setup.losses(batch)[0], decoder + 0.4 * aligned)
  same = setup_of('joint')
  close(same.losses(batch)[0], same.losses(nothing)[0])


@every_head
def test_every_parameter_learns_and_what_cannot_be_aligned_gives_no_nan(head):
  setup = setup_of(head)
  batch = example_batch()
  gradient = jax.jit(jax.grad(lambda params, batch: TASK.loss(setup.model, params, batch, 0.1)[0]))
  for name, value in jax.tree_util.tree_leaves_with_path(gradient(setup.params, batch)):
    if not jax.tree_util.keystr(name).endswith("['key']['bias']"):
      assert np.abs(value).max() > 1e-6, name
  short = batch | {
    'audio_mask': batch['audio_mask'] & (np.arange(S) < 2)
  }  # one frame for several labels
  sums, _ = setup.losses(short)
  assert np.all(np.isfinite(sums)) and all(
    np.all(np.isfinite(x)) for x in jax.tree.leaves(gradient(setup.params, short))
  )
  assert (sums == 0).tolist() == [head == 'ctc'] * B


# Searches


def test_ctc_decodes_by_the_best_path_and_by_prefixes():
  setup = setup_of('ctc')
  batch = example_batch(B + 1)
  memory = setup.apply('encode', example_batch())
  for options, decode in (
    (SearchOptions('greedy', max_length=8), ctc.best_path),
    (SearchOptions('beam', max_length=8), ctc.prefix_beam),
  ):
    wanted = decode(
      ctc.frame_log_probs(setup.apply('ctc_logits', memory), memory.mask, options), options
    )
    found = setup.generate(batch, options)
    assert found.lengths[B:].max() == 0 and len(np.unique(found.lengths)) > 1
    np.testing.assert_array_equal(found.tokens[:B], wanted.tokens)
  assert found.lengths[:B].min() > 0


@pytest.mark.parametrize('head', ['joint', 'joint_recurrent'])
def test_a_joint_search_is_scored_as_its_two_branches_score_its_texts(head):
  setup = setup_of(head)
  batch = example_batch()
  n = 3
  options = SearchOptions('beam', max_length=6, beam_size=4, n_best=n, length_penalty=0.0)
  weight = 0.3
  result = setup.generate(batch, options, Fusion(weight))
  tokens = result.tokens.reshape(-1, 6)
  ended = (tokens == EOS).any(1)
  assert ended.sum() >= B
  mask = np.arange(6) < result.lengths.reshape(-1, 1)
  rows = {key: np.repeat(value, n, 0) for key, value in batch.items()} | {
    'target': tokens,
    'target_mask': mask,
  }
  aligned = setup.ctc(rows, *words_of(rows))
  both, _ = setup.losses(rows)
  decoder = (both - 0.4 * aligned) / 0.6
  wanted = -(1 - weight) * decoder - weight * aligned
  np.testing.assert_allclose(result.log_probs.reshape(-1)[ended], wanted[ended], rtol=1e-3)


def test_weights_of_0_are_the_plain_searches_and_beam_1_is_greedy():
  setup = setup_of('joint')
  batch = example_batch()
  options = SearchOptions('beam', max_length=6, beam_size=3)
  plain = setup.generate(batch, options)
  jax.tree.map(np.testing.assert_array_equal, plain, setup.generate(batch, options, Fusion(0.0)))
  both = setup.generate(batch, options, Fusion(0.5))
  assert np.all(both.log_probs != plain.log_probs)
  beam, greedy = (
    setup.generate(batch, SearchOptions(m, max_length=6, beam_size=1), Fusion(0.5))
    for m in ('beam', 'greedy')
  )
  jax.tree.map(np.testing.assert_array_equal, beam, greedy)


def test_ctc_alone_over_tokens_agrees_with_ctc_over_frames():
  """The joint head with weight 1 is a search over tokens; both are exact with a wide beam."""
  setup = setup_of('joint')
  batch = example_batch(rows=S)
  batch['audio_mask'] &= np.arange(S) < 8  # four frames
  options = SearchOptions('beam', max_length=6, beam_size=200, n_best=4, length_penalty=0.0)
  over_tokens = setup.generate(batch, options, Fusion(1.0))
  memory = setup.apply('encode', batch)
  frames = ctc.frame_log_probs(setup.apply('ctc_logits', memory), memory.mask, options)
  over_frames = jax.jit(lambda frames: ctc.prefix_beam(frames, options))(frames)
  # What is spread over the start and the end of a text is lost to neither.
  close(over_tokens.log_probs, over_frames.log_probs, rtol=1e-3)
  for b in range(B):
    for n in range(4):
      length = over_frames.lengths[b, n]
      np.testing.assert_array_equal(
        over_tokens.tokens[b, n, :length], over_frames.tokens[b, n, :length]
      )
      assert over_tokens.tokens[b, n, length] == EOS


def language_model():
  config = default_config()
  config.model.unlock().update(dim=D, dropout=0.0)
  config.task = 'language_model'
  config.model.encoders = {}
  config.model.head = {'name': 'transformer_decoder', 'layers': 1, 'heads': 2}
  model = build_model(complete(config).model, V, 16)
  shapes = jax.eval_shape(
    model.init, jax.random.key(0), {'weight': np.ones(1)}, np.zeros((1, T), int)
  )['params']
  rng = np.random.default_rng(8)
  params = jax.tree.map(lambda x: np.float32(0.5 * rng.normal(size=x.shape)), shapes)
  return (
    model,
    params,
    lambda arrays, examples, options: begin_decoder(model, arrays, None, examples, options),
  )


def lm_log_probs(model, params, tokens):
  """Of rows [N, T] that end with EOS, teacher-forced: [N]."""
  inputs = np.concatenate([np.full((len(tokens), 1), BOS), tokens[:, :-1]], 1)
  logits = model.apply({'params': params}, {'weight': np.ones(len(tokens))}, inputs)
  picked = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), tokens[..., None], 2)[..., 0]
  until = np.cumsum(tokens == EOS, 1) - (tokens == EOS) == 0
  return (picked * until).sum(1)


@pytest.mark.parametrize('head', ['ctc', 'joint'])
def test_language_models_are_added_to_both_kinds_of_search(head):
  """A Transformer with its cache and an n-gram, over frames (rows at positions of their own) and
  over tokens.
  """
  setup = setup_of(head)
  batch = example_batch()
  n = 3
  model, params, begin = language_model()
  tables = train_ngram([[4, 5, EOS], [6, EOS]], 2, V, SearchOptions())
  fusion = Fusion(
    0.3 * (head == 'joint'),
    (Scorer(0.5, begin), Scorer(0.2, begin_ngram)),
    (params, jax.tree.map(jnp.asarray, tables)),
  )
  size = 120 if head == 'ctc' else 4
  options = SearchOptions('beam', max_length=6, beam_size=size, n_best=n, length_penalty=0.0)
  batch['audio_mask'] &= np.arange(S) < 6  # three frames: nothing of 120 prefixes is dropped
  result = setup.generate(batch, options, fusion)
  tokens = np.concatenate([result.tokens.reshape(-1, 6), np.full((B * n, 1), PAD)], 1)
  if head == 'ctc':
    tokens[np.arange(len(tokens)), result.lengths.reshape(-1)] = EOS
  ended = (tokens == EOS).any(1)
  assert ended.sum() >= B
  rows = {key: np.repeat(value, n, 0) for key, value in batch.items()}
  rows |= {'target': tokens, 'target_mask': np.cumsum(tokens == EOS, 1) - (tokens == EOS) == 0}
  aligned = -setup.ctc(rows, *words_of(rows))
  if head == 'ctc':
    wanted = aligned
  else:
    wanted = 0.7 * -((setup.losses(rows)[0] + 0.4 * aligned) / 0.6) + 0.3 * aligned
  for i in np.flatnonzero(ended):
    history = tables.next_history[0, BOS]
    given = 0.0
    for token in tokens[i, : list(tokens[i]).index(EOS) + 1]:
      given = given + tables.log_probs[history, token]
      history = tables.next_history[history, token]
    empty = not words_of(rows)[1][i].any()  # CTC's loss of no label counts nothing
    if not empty:
      total = wanted[i] + 0.5 * lm_log_probs(model, params, tokens[i : i + 1])[0] + 0.2 * given
      np.testing.assert_allclose(result.log_probs.reshape(-1)[i], total, rtol=2e-3)
