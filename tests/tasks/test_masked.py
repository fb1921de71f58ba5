"""Masked language models: which tokens are to be found, and what is learned of them.

Axes: B rows, S tokens of a row, M tokens to be found.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmlm.data.text import Texts
from mmlm.data.tokenizers.special_tokens import SpecialTokens
from mmlm.data.tokenizers.train_tokenizer import train_tokenizer
from mmlm.models.encoders.bert_encoder import BertEncoder
from mmlm.models.fusion import FUSIONS
from mmlm.models.heads import HEADS
from mmlm.models.multimodal import MultimodalModel
from mmlm.tasks import TASKS
from mmlm.tasks.masked_language_modeling import mask_tokens
from mmlm.utils.errors import UserError

BOS = SpecialTokens().bos_id
EOS = SpecialTokens().eos_id
PAD = SpecialTokens().pad_id
UNK = SpecialTokens().unk_id

TASK = TASKS['masked_language_model']
VOCABULARY = 12
MASK_ID = 4


def batch_of(lengths, width, seed=0):
  """Rows <bos> words <eos>."""
  rng = np.random.default_rng(seed)
  text = np.full((len(lengths), width), PAD, np.int32)
  for row, length in zip(text, lengths):
    row[:length] = [BOS, *rng.integers(5, VOCABULARY, length - 2), EOS]
  target = np.full((len(lengths), 1), MASK_ID)
  return {
    'text': text,
    'text_mask': text != PAD,
    'target': target,
    'target_mask': target > 0,
    'weight': np.ones(len(lengths), np.float32),
  }


pick = jax.jit(lambda batch, keys: mask_tokens(batch, keys, VOCABULARY, SpecialTokens()))


def keys_of(batch, seed=0):
  return jax.random.split(jax.random.key(seed), len(batch['weight']))


def test_fifteen_percent_are_to_be_found_and_four_fifths_of_them_masked():
  batch = batch_of([102] * 200, 104)
  text, places, there = map(np.asarray, pick(batch, keys_of(batch)))
  assert (there.sum(1) == 15).all()
  rows = np.arange(200)[:, None]
  old = batch['text'][rows, places][there]
  new = text[rows, places][there]
  assert not np.isin(old, [PAD, BOS, EOS]).any()
  assert abs((new == MASK_ID).mean() - 0.8) < 0.03 and new.min() > UNK
  left = (new == old).mean()
  assert 0.08 < left < 0.14  # one in ten, and a random word that is the same
  untouched = np.ones(text.shape, bool)
  np.put_along_axis(untouched, np.where(there, places, places[:, :1]), False, 1)
  assert (text == batch['text'])[untouched].all()
  again, _, _ = pick(batch, keys_of(batch, 1))
  assert (np.asarray(again) != text).any()


def test_a_short_text_has_one_and_padding_changes_nothing():
  short = batch_of([3, 4, 9], 10)
  wide = batch_of([3, 4, 9], 40)
  (text, _, there), (longer, _, more) = pick(short, keys_of(short)), pick(wide, keys_of(short))
  assert there.sum(1).tolist() == more.sum(1).tolist() == [1, 1, 1]
  np.testing.assert_array_equal(text, longer[:, :10])


@functools.cache
def built():
  encoder = BertEncoder(
    dim=8, vocab_size=VOCABULARY, width=8, layers=1, heads=2, ffn_dim=8, max_positions=64
  )
  model = MultimodalModel(
    {'text': encoder},
    FUSIONS['concatenation'](dim=8),
    HEADS['masked_tokens'](dim=8, vocab_size=VOCABULARY),
  )
  batch = batch_of([6, 12], 12)
  params = jax.jit(model.init)({'params': jax.random.key(0)}, batch, batch['target'])['params']
  return model, jax.tree.map(
    lambda x: (
      np.asarray(x) + np.random.default_rng(x.size).normal(0, 0.3, x.shape).astype(np.float32)
    ),
    params,
  )


def test_the_loss_is_of_the_chosen_tokens_alone():
  model, params = built()
  batch = batch_of([6, 12, 12], 12)
  rng = jax.random.key(5)
  batch['weight'][2] = 0
  total, weight = jax.jit(lambda params: TASK.loss(model, params, batch, 0.0, rng))(params)
  text, places, there = pick(batch, jax.random.split(jax.random.fold_in(rng, 1), 3))
  x, _ = jax.jit(lambda: model.apply({'params': params}, batch | {'text': text}, None))()
  logits = (
    np.asarray(x)[..., :-1] @ params['encoders_text']['tokens']['embedding'].T
    + params['head']['bias']
  )
  losses = (
    np.log(np.exp(logits).sum(-1))
    - np.take_along_axis(logits, batch['text'][..., None], -1)[..., 0]
  )
  there = np.asarray(there)[:2]
  wanted = sum(
    losses[row, place] for row, place in zip(np.nonzero(there)[0], np.asarray(places)[:2][there])
  )
  np.testing.assert_allclose(total, wanted, rtol=1e-4)
  assert weight == there.sum() == 3


def test_validation_draws_by_the_text_and_tells_what_was_found():
  model, params = built()
  both = batch_of([12, 9], 12)
  alone = batch_of([12], 20)
  assert (both['text'][0, :12] == alone['text'][0, :12]).all()
  losses = jax.jit(lambda batch: TASK.losses(model, params, batch))
  np.testing.assert_allclose(losses(both)[0][0], losses(alone)[0][0], rtol=1e-4)
  found = jax.device_get(jax.jit(lambda batch: TASK.answer(model, params, batch, None, None))(both))
  np.testing.assert_allclose(found['nats'], losses(both)[0], rtol=1e-4)
  tokenizer = train_tokenizer(['abcdefgh'], 'char', 20, mask=True)
  (row,) = TASK.read({key: value[0] for key, value in found.items()}, Texts(tokenizer))
  assert row['tokens'] == 2 and len(row['hypothesis']) <= 10 and 0 <= row['right'] <= 2
  filled = found['tokens'][0]
  true = both['text'][0]
  assert (filled != true).sum() == row['tokens'] - row['right']


def test_a_tokenizer_without_a_mask_is_refused():
  with pytest.raises(UserError, match='Set tokenizer.mask to True'):
    TASK.outputs(None, Texts(train_tokenizer(['ab'], 'char', 20)))


def test_an_output_that_cannot_be_tied_is_refused():
  model, params = built()
  other = params | {'head': params['head'] | {'norm': {'scale': jnp.ones(4), 'bias': jnp.ones(4)}}}
  with pytest.raises(UserError, match='whose width must be model.dim'):
    TASK.losses(model, other, batch_of([6], 12))
