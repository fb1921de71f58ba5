"""Masked language modeling: predicts masked tokens of a text (Devlin et al. 2019, 3.1).

Axes: B batch, S sequence, M masked tokens of an example, D width, V vocabulary; N = B M.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from mmlm.data.pipeline import Table
from mmlm.data.text import Texts
from mmlm.data.tokenizers.special_tokens import SpecialTokens
from mmlm.decoding.next_tokens import is_any
from mmlm.decoding.score_fusion import NO_FUSION, Fusion
from mmlm.decoding.search_options import SearchOptions
from mmlm.evaluation.metrics.language_metrics import masked_row
from mmlm.models.apply import apply
from mmlm.models.multimodal import MultimodalModel
from mmlm.tasks import grading, smoke_forms
from mmlm.tasks.base import Batch, Grade, Task
from mmlm.tasks.language_modeling import NATS
from mmlm.tasks.text_generation import (
  LARGEST_EXPONENT,
  TokenOutputs,
  dropout_keys,
  sums_by_example,
  token_outputs,
)
from mmlm.training.losses import summed_loss, token_losses
from mmlm.utils.errors import UserError

# The share of tokens that are predicted; of these the share that is masked, and the share that is
# replaced by random tokens. The rest are kept.
PREDICTED = 0.15
MASKED = 0.8
RANDOM = 0.1


class MaskedText(NamedTuple):
  """A text with masked tokens."""

  tokens: jax.Array  # [B, S]
  positions: jax.Array  # [B, M] of the tokens that are predicted
  is_predicted: jax.Array  # [B, M]; the rest of M is padding


@dataclass(frozen=True)
class MaskedLanguageModel(Task):
  """Predicts 15 % of the tokens of a text: 80 % of them masked, 10 % replaced, 10 % as they are.

  The tokens are drawn anew in each step. For validation the draw depends on the text alone.
  """

  metrics: tuple[str, ...] = ('perplexity_masked', 'masked_accuracy')
  uses: tuple[str, ...] = ('masked tokens',)
  answers: str = 'text'

  measure = NATS

  def grade(self, predictions: list[dict]) -> list[Grade]:
    return grading.grade_likelihoods(predictions)

  def displayed(self, prediction: dict) -> dict:
    return grading.scored_text(prediction)

  def smoke(self, config: ConfigDict) -> ConfigDict:
    return smoke_forms.masked_text(config)

  def outputs(self, head: ConfigDict, texts: Texts) -> Texts:
    if texts.tokenizer.mask_id is None:
      raise UserError(
        'masked_language_model: the tokenizer has no mask token. Set tokenizer.mask to True.'
      )
    return texts

  def texts_to_learn(self, source: Sequence[dict]) -> dict[str, list[str]]:
    return {'text': [text_of(source[i]) for i in range(len(source))], 'target': []}

  def table(
    self,
    source: Sequence[dict],
    inputs: Texts,
    outputs: Texts,
    with_targets: bool = True,
  ) -> Table:
    """Returns an entry for each example; its target is the id of the mask token."""
    ids = []
    texts = []
    for i in range(len(source)):
      example = source[i]
      ids.append(example['id'])
      texts.append(text_of(example))
    mask_id = outputs.tokenizer.mask_id
    assert mask_id is not None  # checked by `outputs`
    targets = [[mask_id]] * len(ids)
    return Table(ids, np.arange(len(ids)), targets, inputs.encode_inputs(texts))

  def references(self, example: dict) -> list[list[str]]:
    return [[text_of(example)]]

  def loss(
    self,
    model: MultimodalModel,
    params: dict,
    batch: Batch,
    label_smoothing: float = 0.0,
    rng: jax.Array | None = None,
  ) -> tuple[jax.Array, Any]:
    """Returns the sum of the cross-entropy in nats of the predicted tokens, and their number."""
    outputs, _ = self._token_outputs(model, params, batch, rng)
    return summed_loss(*outputs, label_smoothing), outputs.weights.sum()

  def losses(
    self,
    model: MultimodalModel,
    params: dict,
    batch: Batch,
  ) -> tuple[jax.Array, jax.Array]:
    outputs, masked = self._token_outputs(model, params, batch, None)
    *outputs, weights = outputs
    shape = masked.positions.shape
    nats = sums_by_example(token_losses(*outputs) * weights, shape)
    return nats, sums_by_example(weights, shape)

  def summary(self, loss: float) -> dict[str, float]:
    """Returns {'loss': nats a predicted token, 'perplexity_masked'}."""
    return {'loss': loss, 'perplexity_masked': float(np.exp(min(loss, LARGEST_EXPONENT)))}

  def forward(
    self,
    model: MultimodalModel,
    params: dict,
    batch: Batch,
  ) -> dict[str, jax.Array]:
    """Returns {'logits' [B, S, V]} of each position of a text, in which the caller masks tokens."""
    hidden_states, bias = apply(model, params, batch, None)
    output_table = jnp.concatenate([embedding_table(params), bias], 1)
    return {'logits': hidden_states @ output_table.T.astype(hidden_states.dtype)}

  def answer(
    self,
    model: MultimodalModel,
    params: dict,
    batch: Batch,
    options: SearchOptions,
    rng: jax.Array,
    fusion: Fusion = NO_FUSION,
  ) -> dict[str, jax.Array]:
    """Returns of each example the text with its predicted tokens, and their scores.

    Returns:
      {'tokens' [B, S], 'nats' [B], 'count' [B] of predicted tokens, 'right' [B] of correct ones}.
    """
    outputs, masked = self._token_outputs(model, params, batch, None)
    hidden_states, output_table, targets, weights = outputs
    predicted = (hidden_states @ output_table.T).argmax(-1)
    shape = masked.positions.shape
    filled = jnp.where(weights > 0, predicted, targets).reshape(shape)
    examples = jnp.arange(len(masked.positions))[:, None]
    nats = token_losses(hidden_states, output_table, targets) * weights
    return {
      'tokens': jnp.asarray(batch['text']).at[examples, masked.positions].set(filled),
      'nats': sums_by_example(nats, shape),
      'count': sums_by_example(weights, shape),
      'right': sums_by_example((predicted == targets) * weights, shape),
    }

  def read(self, answer: dict, outputs: Texts) -> list[dict]:
    tokenizer = outputs.tokenizer
    special = (tokenizer.pad_id, tokenizer.bos_id, *tokenizer.eos_ids)
    tokens = [token for token in answer['tokens'].tolist() if token not in special]
    (text,) = outputs.decode_batch([tokens])
    return [masked_row(text, answer['nats'], answer['count'], answer['right'])]

  def _token_outputs(
    self,
    model: MultimodalModel,
    params: dict,
    batch: Batch,
    rng: jax.Array | None,
  ) -> tuple[TokenOutputs, MaskedText]:
    """Returns what the loss of the predicted tokens is computed from, N = B M.

    The bias of the output layer is its last column, [V, D + 1].
    """
    keys = _keys_of_texts(batch)
    if rng is not None:
      keys = jax.random.split(jax.random.fold_in(rng, 1), len(batch['weight']))
    embeddings = embedding_table(params)
    masked = mask_tokens(batch, keys, len(embeddings), model.special_tokens)
    train = rng is not None
    inputs = batch | {'text': masked.tokens}
    hidden_states, bias = apply(model, params, inputs, None, train, rngs=dropout_keys(rng))
    positions = masked.positions
    hidden_states = jnp.take_along_axis(hidden_states, positions[..., None], 1)  # [B, M, D + 1]
    weights = masked.is_predicted * batch['weight'][:, None]
    targets = jnp.take_along_axis(batch['text'], positions, 1)
    output_table = jnp.concatenate([embeddings, bias], 1)
    return token_outputs((hidden_states, output_table), targets, weights), masked


def text_of(example: dict) -> str:
  """Returns the text of an example.

  Raises:
    UserError: it has none.
  """
  text = example.get('text')
  if not isinstance(text, str) or not text.strip():
    raise UserError(
      f"{example['id']} has no text: a masked language model reads the field 'text' (data.fields)."
    )
  return text


def embedding_table(params: dict) -> jax.Array:
  """Returns the token embeddings [V, D] of the text encoder, which the output layer shares.

  Raises:
    UserError: there are none, or their width is not that of the model.
  """
  tokens = params.get('embeddings') or params['encoders_text'].get('tokens', {})
  table = tokens.get('table', tokens.get('embedding'))
  if table is None or table.shape[1] != params['head']['norm']['scale'].shape[0]:
    raise UserError(
      'masked_language_model: the output layer is tied to the token embeddings of '
      'model.encoders.text, whose width must be model.dim.'
    )
  return table


def _keys_of_texts(batch: Batch) -> jax.Array:
  """Returns a random key for each text, the same in every batch."""
  text = batch['text'].astype(jnp.uint32) * batch['text_mask']
  positions = jnp.arange(1, text.shape[1] + 1, dtype=jnp.uint32)
  return jax.vmap(jax.random.key)((text * positions * positions).sum(1))


def _draws(keys: jax.Array, length: int) -> jax.Array:
  """Returns three uniform draws for each position, [B, S, 3].

  A draw depends on its position alone, so that padding changes none.
  """

  def draw(key: jax.Array, position: jax.Array) -> jax.Array:
    return jax.random.uniform(jax.random.fold_in(key, position), (3,))

  of_text = jax.vmap(draw, (None, 0))
  return jax.vmap(of_text, (0, None))(keys, jnp.arange(length))


def mask_tokens(
  batch: Batch,
  keys: jax.Array,
  vocab_size: int,
  special: SpecialTokens,
) -> MaskedText:
  """Masks 15 % of the tokens of each text, at least one; never its start or end.

  Args:
    keys: [B].
  """
  text = jnp.asarray(batch['text'])  # [B, S]
  mask_id = batch['target'][:, :1]  # [B, 1]
  can_be_masked = batch['text_mask'] & ~is_any(text, (special.bos_id, *special.eos_ids))
  draws = _draws(keys, text.shape[1])
  most = -(-text.shape[1] * 3 // 20)
  values, positions = jax.lax.top_k(jnp.where(can_be_masked, draws[..., 0], -1.0), most)
  count = jnp.clip(jnp.round(PREDICTED * can_be_masked.sum(1)), 1, most)
  is_predicted = (values >= 0) & (jnp.arange(most) < count[:, None])
  kind = jnp.take_along_axis(draws[..., 1], positions, 1)
  token_draw = jnp.take_along_axis(draws[..., 2], positions, 1)
  original = jnp.take_along_axis(text, positions, 1)
  random = _random_tokens(token_draw, vocab_size, special).astype(text.dtype)
  random_or_original = jnp.where(kind < MASKED + RANDOM, random, original)
  replaced = jnp.where(kind < MASKED, mask_id, random_or_original)
  tokens = jnp.where(is_predicted, replaced, original)
  examples = jnp.arange(len(text))[:, None]
  return MaskedText(text.at[examples, positions].set(tokens), positions, is_predicted)


def _random_tokens(draws: jax.Array, vocab_size: int, special: SpecialTokens) -> jax.Array:
  """Returns tokens that are uniform among those that are not special, for draws from [0, 1)."""
  tokens = jnp.floor(draws * (vocab_size - len(special.distinct))).astype(jnp.int32)
  for special_id in special.distinct:
    tokens += tokens >= special_id
  return tokens
