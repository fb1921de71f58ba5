"""Language models: of what comes next in running text, and of masked tokens.

Axes: B batch, T time, S sequence, M masked tokens of a row, D width, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from mmlm.data.pipeline import Table
from mmlm.data.running_text import texts_of
from mmlm.data.text import Texts
from mmlm.data.tokenizers.special_tokens import SpecialTokens
from mmlm.decoding.next_tokens import is_any
from mmlm.evaluation.metrics.language_metrics import masked_row
from mmlm.models.multimodal import MultimodalModel
from mmlm.tasks import grading, smoke_forms
from mmlm.tasks.base import Grade, Measure, Task
from mmlm.tasks.text_generation import TextGeneration
from mmlm.training.losses import summed_loss, token_losses
from mmlm.utils.errors import UserError

NATS = Measure('nats a token', higher_is_better=False)


@dataclass(frozen=True)
class LanguageModel(TextGeneration):
  """A decoder with nothing before it. Sentences, one a row, or running text (data/running_text.py), whose batches hold their own inputs; of a
  model that carries its state on they also hold 'carry', rows first, and 'fresh' [B], the rows whose text begins here.
  """

  metrics: tuple[str, ...] = ('perplexity_word', 'bits_per_character', 'bits_per_byte')
  heads: tuple[str, ...] = ('transformer_decoder', 'recurrent_decoder', 'lstm')

  needs_encoders: ClassVar[bool] = False
  measure: ClassVar[Measure] = NATS
  compares_words: ClassVar[bool] = False
  shows_attention: ClassVar[bool] = False
  verb: ClassVar[str] = ''

  def continues_text(self, modalities: Sequence[str]) -> bool:
    return not modalities

  def grade(self, predictions: list[dict]) -> list[Grade]:
    return grading.grade_likelihoods(predictions)

  def displayed(self, prediction: dict) -> dict:
    return grading.scored_text(prediction)

  def smoke(self, config: ConfigDict) -> ConfigDict:
    return smoke_forms.plain_text(config)

  def texts_to_learn(self, source) -> dict[str, list[str]]:
    return {
      'text': [],
      'target': [text for i in range(len(source)) for text in texts_of(source[i])],
    }

  def loss(self, model, params, batch, label_smoothing=0.0, rng=None):
    """Sum of the cross-entropy in nats and of its weights (tokens); with a carry the second is (weights, new carry)."""
    predicted, carry = self._carried(model, params, batch, rng)
    total = summed_loss(*predicted, label_smoothing)
    weight = predicted[-1].sum()
    return total, (weight, carry) if 'carry' in batch else weight

  def forward(self, model, params, batch) -> dict:
    """{'logits' [B, T, V]} of every target, given what stands before it in its row; a state begins anew."""
    x, table, *_ = self._predicted(model, params, batch, None)
    return {'logits': (x @ table.T.astype(x.dtype)).reshape(*batch['target'].shape, -1)}

  def token_nats(self, model, params, batch) -> dict:
    """{'nats': [B, T], of each target, 'carry' where there is one}; no dropout."""
    (x, table, targets, _), carry = self._carried(model, params, batch, None)
    found = {'nats': token_losses(x, table, targets).reshape(batch['target'].shape)}
    return found | ({'carry': carry} if 'carry' in batch else {})

  def first_carry(self, model: MultimodalModel, rows: int) -> dict:
    """What `rows` rows start from."""
    return {'head': {'state': model.head.zero_state(rows)}}

  def _carried(self, model, params, batch, rng):
    """What `_predicted` gives, and the state behind the last token; the gradient ends where the state comes in."""
    if 'carry' not in batch:
      return self._predicted(model, params, batch, rng), ()
    inputs, weights = self._inputs(model, batch)
    begun = jax.tree.map(
      lambda old: jnp.where(batch['fresh'][:, None], 0, old),
      batch['carry'],
    )
    rngs = {} if rng is None else {'dropout': rng}
    (x, table), left = model.apply(
      {'params': params, 'carry': begun},
      batch,
      inputs,
      rng is not None,
      rngs=rngs,
      method='hidden',
      mutable=['carry'],
    )
    return (
      x.reshape(-1, x.shape[-1]),
      table,
      batch['target'].reshape(-1),
      weights.reshape(-1),
    ), left['carry']

  def _inputs(self, model, batch):
    if 'inputs' not in batch:
      return super()._inputs(model, batch)
    return batch['inputs'], batch['target_mask'] * batch['weight'][:, None]


# of all tokens are found; of these so many are masked, so many random, the rest as they are
SHARE = 0.15
MASKED = 0.8
RANDOM = 0.1


@dataclass(frozen=True)
class MaskedLanguageModel(Task):
  """Finds 15 % of the tokens of a text: 80 % of them masked, 10 % replaced by others, 10 % left (Devlin et al. 2019, 3.1).

  Which ones is drawn anew in each step; for validation they depend on the text alone.
  """

  metrics: tuple[str, ...] = ('perplexity_masked', 'masked_accuracy')
  heads: tuple[str, ...] = ('masked_tokens',)
  answers: str = 'text'

  measure: ClassVar[Measure] = NATS

  def grade(self, predictions: list[dict]) -> list[Grade]:
    return grading.grade_likelihoods(predictions)

  def displayed(self, prediction: dict) -> dict:
    return grading.scored_text(prediction)

  def smoke(self, config: ConfigDict) -> ConfigDict:
    return smoke_forms.masked_text(config)

  def outputs(self, head, texts: Texts) -> Texts:
    if texts.tokenizer.mask_id is None:
      raise UserError(
        'masked_language_model: the tokenizer has no token that stands for a masked one. Set tokenizer.mask to True.'
      )
    return texts

  def texts_to_learn(self, source) -> dict[str, list[str]]:
    return {'text': [text_of(source[i]) for i in range(len(source))], 'target': []}

  def table(self, source, inputs: Texts, outputs: Texts, with_targets: bool = True) -> Table:
    """One row an example; the mask's id stands in the targets."""
    ids, texts = map(
      list,
      zip(
        *((example['id'], text_of(example)) for example in (source[i] for i in range(len(source))))
      ),
    )
    return Table(
      ids,
      np.arange(len(ids)),
      [[outputs.tokenizer.mask_id]] * len(ids),
      inputs.encode_inputs(texts),
    )

  def loss(self, model, params, batch, label_smoothing=0.0, rng=None):
    """Sum of the cross-entropy in nats of the tokens that are to be found, and their number."""
    (x, table, targets, weights), _ = self._found(model, params, batch, rng)
    return summed_loss(x, table, targets, weights, label_smoothing), weights.sum()

  def forward(self, model, params, batch) -> dict:
    """{'logits' [B, S, V]} of every place of the text, which is read as it is: whoever calls masks it."""
    x, bias = model.apply({'params': params}, batch, None)
    return {'logits': x @ jnp.concatenate([table_of(params), bias], 1).T.astype(x.dtype)}

  def losses(self, model, params, batch):
    """The same for each example: [B] and [B]."""
    (x, table, targets, weights), shape = self._found(model, params, batch, None)

    def by_example(tokens):
      return tokens.reshape(shape).sum(1)

    return by_example(token_losses(x, table, targets) * weights), by_example(weights)

  def summary(self, loss: float) -> dict:
    """{'loss': nats a masked token, 'perplexity_masked'}"""
    return {'loss': loss, 'perplexity_masked': float(np.exp(min(loss, 80)))}

  def answer(self, model, params, batch, options, rng, fusion=None) -> dict:
    """Of each example its tokens as they were found [B, S], the nats, the tokens to be found and those that were."""
    (x, table, targets, weights), shape = self._found(model, params, batch, None)
    said = (x @ table.T).argmax(-1)

    def by_example(tokens):
      return tokens.reshape(shape).sum(1)

    _, places, _ = chosen(batch, self._keys(batch), len(table), model.special_tokens)
    rows = jnp.arange(len(places))[:, None]
    filled = (
      jnp.asarray(batch['text'])
      .at[rows, places]
      .set(jnp.where(weights > 0, said, targets).reshape(shape))
    )
    nats = by_example(token_losses(x, table, targets) * weights)
    return {
      'tokens': filled,
      'nats': nats,
      'count': by_example(weights),
      'right': by_example((said == targets) * weights),
    }

  def read(self, found: dict, outputs: Texts) -> list[dict]:
    """The answer for one example -> its row."""
    ids = outputs.tokenizer
    special = (ids.pad_id, ids.bos_id, *ids.eos_ids)
    tokens = [token for token in found['tokens'].tolist() if token not in special]
    return [
      masked_row(outputs.decode_batch([tokens])[0], found['nats'], found['count'], found['right'])
    ]

  def references(self, example: dict) -> list[list[str]]:
    return [[text_of(example)]]

  def _keys(self, batch):
    """Keys of the rows, the same in whatever batch they stand."""
    text = batch['text'].astype(jnp.uint32) * batch['text_mask']
    places = jnp.arange(1, text.shape[1] + 1, dtype=jnp.uint32)
    return jax.vmap(jax.random.key)((text * places * places).sum(1))

  def _found(self, model, params, batch, rng):
    """What the output sees of the tokens to be found [B M, D + 1], that layer [V, D + 1], these tokens and weights [B M]; and (B, M)."""
    if rng is None:
      keys = self._keys(batch)
    else:
      keys = jax.random.split(jax.random.fold_in(rng, 1), len(batch['weight']))
    words = table_of(params)
    text, places, there = chosen(batch, keys, len(words), model.special_tokens)
    rngs = {} if rng is None else {'dropout': rng}
    x, bias = model.apply(
      {'params': params}, batch | {'text': text}, None, rng is not None, rngs=rngs
    )
    x = jnp.take_along_axis(x, places[..., None], 1)  # [B, M, D + 1]
    weights = there * batch['weight'][:, None]
    targets = jnp.take_along_axis(batch['text'], places, 1)
    table = jnp.concatenate([words, bias], 1)
    return (
      x.reshape(-1, x.shape[-1]),
      table,
      targets.reshape(-1),
      weights.reshape(-1),
    ), places.shape


def text_of(example: dict) -> str:
  if not isinstance(text := example.get('text'), str) or not text.strip():
    raise UserError(
      f"{example['id']} has no text: a masked language model reads the field 'text' (data.fields)."
    )
  return text


def table_of(params: dict):
  """The table of tokens [V, D] of the text encoder, whose output it also is."""
  tokens = params.get('embeddings') or params['encoders_text'].get('tokens', {})
  (table,) = [leaf for name, leaf in tokens.items() if name in ('table', 'embedding')] or [None]
  if table is None or table.shape[1] != params['head']['norm']['scale'].shape[0]:
    raise UserError(
      'masked_language_model: the output is tied to the tokens of model.encoders.text, whose width must be model.dim.'
    )
  return table


def chosen(batch: dict, keys, vocab_size: int, special: SpecialTokens):
  """The text with tokens masked [B, S], the places of these tokens [B, M] and which of them there are [B, M].

  15 % of the tokens of each row, at least one; starts and ends are never among them. `keys` [B].
  """
  # [B, S], [B, 1]
  text = jnp.asarray(batch['text'])
  mask_id = batch['target'][:, :1]
  able = batch['text_mask'] & ~is_any(text, (special.bos_id, *special.eos_ids))
  # A draw belongs to its place, so that more padding changes none.
  draws = jax.vmap(
    lambda key: jax.vmap(lambda i: jax.random.uniform(jax.random.fold_in(key, i), (3,)))(
      jnp.arange(text.shape[1])
    )
  )(keys)
  most = -(-text.shape[1] * 3 // 20)
  values, places = jax.lax.top_k(jnp.where(able, draws[..., 0], -1.0), most)
  count = jnp.clip(jnp.round(SHARE * able.sum(1)), 1, most)
  there = (values >= 0) & (jnp.arange(most) < count[:, None])
  kind, word = (jnp.take_along_axis(draws[..., i], places, 1) for i in (1, 2))
  old = jnp.take_along_axis(text, places, 1)
  # Uniform among the tokens that are not special: each special id moves those from it on up by one.
  other = jnp.floor(word * (vocab_size - len(special.distinct))).astype(text.dtype)
  for special_id in special.distinct:
    other += other >= special_id
  new = jnp.where(kind < MASKED, mask_id, jnp.where(kind < MASKED + RANDOM, other, old))
  return (
    text.at[jnp.arange(len(text))[:, None], places].set(
      jnp.where(
        there,
        new,
        old,
      )
    ),
    places,
    there,
  )
