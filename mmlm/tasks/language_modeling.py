"""Language modeling: a decoder without encoders, over sentences or running text.

Batches of running text (data/running_text.py) hold their own decoder inputs. For a head that
carries its state they also hold `carry`, examples first, and `fresh` [B], true where a text begins.
Axes: B batch, T time, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mmlm.data.running_text import texts_of
from mmlm.models.multimodal import MultimodalModel
from mmlm.tasks import grading, smoke_forms
from mmlm.tasks.base import Batch, Grade, Measure
from mmlm.tasks.text_generation import TextGeneration, TokenOutputs, dropout_keys, token_outputs
from mmlm.training.losses import summed_loss, token_losses

NATS = Measure('nats a token', higher_is_better=False)


@dataclass(frozen=True)
class LanguageModel(TextGeneration):
  """Predicts each token of a text from those before it."""

  metrics: tuple[str, ...] = ('perplexity_word', 'bits_per_character', 'bits_per_byte')
  uses: tuple[str, ...] = ('text', 'running text')

  needs_encoders = False
  measure = NATS
  compares_words = False
  shows_attention = False
  verb = ''

  def continues_text(self, modalities: Sequence[str]) -> bool:
    return not modalities

  def grade(self, predictions: list[dict]) -> list[Grade]:
    return grading.grade_likelihoods(predictions)

  def displayed(self, prediction: dict) -> dict:
    return grading.scored_text(prediction)

  def smoke(self, config: ConfigDict) -> ConfigDict:
    return smoke_forms.plain_text(config)

  def texts_to_learn(self, source: Sequence[dict]) -> dict[str, list[str]]:
    texts = []
    for i in range(len(source)):
      texts += texts_of(source[i])
    return {'text': [], 'target': texts}

  def loss(
    self,
    model: MultimodalModel,
    params: dict,
    batch: Batch,
    label_smoothing: float = 0.0,
    rng: jax.Array | None = None,
  ) -> tuple[jax.Array, Any]:
    """Returns the sum of the cross-entropy in nats and of its weights (tokens), for training.

    If the batch holds a carry, the second value is (weights, new carry).
    """
    outputs, carry = self._outputs_and_carry(model, params, batch, rng)
    total = summed_loss(*outputs, label_smoothing)
    weight = outputs.weights.sum()
    if 'carry' in batch:
      return total, (weight, carry)
    return total, weight

  def forward(
    self,
    model: MultimodalModel,
    params: dict,
    batch: Batch,
  ) -> dict[str, jax.Array]:
    """Returns {'logits' [B, T, V]} of every target, given those before it; no state is carried."""
    outputs = self._token_outputs(model, params, batch, None)
    logits = outputs.hidden_states @ outputs.output_table.T.astype(outputs.hidden_states.dtype)
    return {'logits': logits.reshape(*batch['target'].shape, -1)}

  def token_nats(
    self,
    model: MultimodalModel,
    params: dict,
    batch: Batch,
  ) -> dict[str, Any]:
    """Returns {'nats' [B, T] of each target, and 'carry' if the batch holds one}; no dropout."""
    outputs, carry = self._outputs_and_carry(model, params, batch, None)
    hidden_states, output_table, targets, _ = outputs
    losses = token_losses(hidden_states, output_table, targets)
    result = {'nats': losses.reshape(batch['target'].shape)}
    if 'carry' in batch:
      result['carry'] = carry
    return result

  def first_carry(self, model: MultimodalModel, batch_size: int) -> dict:
    """Returns the carry before the first token."""
    return {'head': {'state': model.head.zero_state(batch_size)}}

  def _outputs_and_carry(
    self,
    model: MultimodalModel,
    params: dict,
    batch: Batch,
    rng: jax.Array | None,
  ) -> tuple[TokenOutputs, Any]:
    """Returns `_token_outputs` and the state after the last token, () without a carry.

    The gradient ends at the state that comes in.
    """
    if 'carry' not in batch:
      return self._token_outputs(model, params, batch, rng), ()
    inputs, weights = self._inputs(model, batch)
    is_fresh = batch['fresh'][:, None]
    carry = jax.tree.map(lambda state: jnp.where(is_fresh, 0, state), batch['carry'])
    train = rng is not None
    layer, updated = model.apply(
      {'params': params, 'carry': carry},
      batch,
      inputs,
      train,
      rngs=dropout_keys(rng),
      method='hidden',
      mutable=['carry'],
    )
    return token_outputs(layer, batch['target'], weights), updated['carry']

  def _inputs(self, model: MultimodalModel, batch: Batch) -> tuple[jax.Array, jax.Array]:
    if 'inputs' not in batch:
      return super()._inputs(model, batch)
    return batch['inputs'], batch['target_mask'] * batch['weight'][:, None]
