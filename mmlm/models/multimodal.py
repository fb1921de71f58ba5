"""Encoders, a fusion and a head as one module: the only model there is.

Axes: B batch, M modalities, R decoding beams, S sequence, T time or parts, D width, V vocabulary.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from mmlm.data.tokenizers.special_tokens import DEFAULT_SPECIAL_TOKENS, SpecialTokens
from mmlm.models.attention import DecodeStep
from mmlm.models.embeddings import TokenEmbedding
from mmlm.models.encoders import ENCODERS
from mmlm.models.encoders.encoder import Encoder
from mmlm.models.fusion import FUSIONS
from mmlm.models.fusion.fusion import Fusion
from mmlm.models.heads import HEADS
from mmlm.models.heads.head import Head
from mmlm.models.sequence import Sequence
from mmlm.utils.traced import is_off

# What the output layer reads [B, T, D], and that layer [V, D]: their product is the logits.
OutputLayer = tuple[Array, Array]


class MultimodalModel(nn.Module):
  """Encodes each modality of a batch, fuses them to a memory, and applies the head to it.

  A batch is a flat dict: modality `m` and, where it may be shorter or missing, `m_mask`.
  """

  encoders: Mapping[str, Encoder]
  fusion: Fusion
  head: Head
  embeddings: TokenEmbedding | None = None  # shared by several parts
  context: Encoder | None = None  # encodes the parts of an example, which are fused one by one
  modality_dropout: float = 0.0  # in training, of modalities of an example, but never of all
  special_tokens: SpecialTokens = DEFAULT_SPECIAL_TOKENS  # of the vocabulary read and written

  def encode(self, batch: dict, train: bool = False) -> Sequence | None:
    """Returns the memory of a batch; None for a model without encoders."""
    if not self.encoders:
      return None
    masks = {name: batch.get(f'{name}_mask') for name in self.encoders}
    masks = self._with_modality_dropout(masks, train)
    sequences = {}
    for name, encoder in self.encoders.items():
      sequences[name] = encoder(batch[name], masks[name], train)
    if self.context is None:
      return self.fusion(sequences, train)
    fused = self._fuse_by_part(sequences, batch['label_mask'], train)
    return self.context(fused, batch['label_mask'], train)

  def _with_modality_dropout(self, masks: dict, train: bool) -> dict:
    if not train or is_off(self.modality_dropout) or len(masks) < 2:
      return masks
    batch_size = len(next(iter(masks.values())))
    draws = jax.random.uniform(self.make_rng('dropout'), (batch_size, len(masks)))
    largest = draws == draws.max(1, keepdims=True)
    keep = (draws >= self.modality_dropout) | largest  # [B, M]
    result = {}
    for i, (name, mask) in enumerate(masks.items()):
      shape = (-1, *[1] * (mask.ndim - 1))
      result[name] = mask & keep[:, i].reshape(shape)
    return result

  def _fuse_by_part(
    self,
    sequences: dict[str, Sequence],
    parts_mask: Array,
    train: bool,
  ) -> Array:
    """Fuses the parts of each example one by one, and pools each to a vector.

    Args:
      sequences: position t of each is part t, [B, T, D].
      parts_mask: [B, T].

    Returns:
      [B, T, D].
    """

    def fold(x: Array) -> Array:
      return x.reshape(-1, 1, *x.shape[2:])

    folded = {name: Sequence(*map(fold, sequence)) for name, sequence in sequences.items()}
    fused = self.fusion(folded, train)  # [B T, S, D]
    mask = fused.mask[..., None]
    total = jnp.where(mask, fused.values, 0).sum(1)
    mean = total / jnp.maximum(mask.sum(1), 1)
    return mean.reshape(*parts_mask.shape, -1)

  def __call__(
    self,
    batch: dict,
    inputs: Array | None,
    train: bool = False,
  ) -> Any:
    """Returns the outputs of the head, e.g. logits [B, T, V] for decoder inputs [B, T]."""
    return self.head(inputs, self.encode(batch, train), train)

  def hidden(
    self,
    batch: dict,
    inputs: Array,
    train: bool = False,
  ) -> OutputLayer:
    """Returns hidden states and the output layer, for decoder inputs [B, T].

    A batch of packed documents has the 'segments' and 'positions' [B, T] of its tokens.
    """
    packing = {name: batch[name] for name in ('segments', 'positions') if name in batch}
    memory = self.encode(batch, train)
    return self.head.output.layer(self.head.hidden(inputs, memory, train, **packing))

  def branches(
    self,
    batch: dict,
    inputs: Array,
    train: bool = False,
  ) -> tuple[OutputLayer | None, Array, Array]:
    """Returns the result of `hidden` (None without a decoder), and of the CTC branch the logits
    [B, S, V] and their mask [B, S].
    """
    memory = self.encode(batch, train)
    assert memory is not None, 'a CTC branch needs encoders'
    output = None
    if self.head.decodes:
      output = self.head.output.layer(self.head.hidden(inputs, memory, train))
    return output, self.head.ctc_logits(memory, train), memory.mask

  def ctc_logits(self, memory: Sequence) -> Array:
    """Returns the logits [B, S, V] of the CTC branch."""
    return self.head.ctc_logits(memory)

  def step(
    self,
    tokens: Array,
    memory: Sequence | None,
    step: DecodeStep,
  ) -> Array:
    """Returns logits [R, V] for the tokens [R] of one decoding step."""
    return self.head.step(tokens, memory, step)


def build_model(
  config: Any,
  vocab_size: int,
  max_length: int,
  special_tokens: SpecialTokens = DEFAULT_SPECIAL_TOKENS,
) -> MultimodalModel:
  """Builds the model of a completed `config.model`.

  Args:
    max_length: of the longest target or text, in tokens.
    special_tokens: of the vocabulary.
  """
  embeddings = None
  if config.shared_embeddings:
    embeddings = TokenEmbedding(vocab_size, config.dim, config.dtype)
  inherited = {
    'dim': config.dim,
    'dropout': config.dropout,
    'dtype': config.dtype,
    'vocab_size': vocab_size,
    'max_length': max_length,
    'embeddings': embeddings,
  }

  def part(classes: Mapping[str, type], options: Any) -> Any:
    cls = classes[options.name]
    shared = {key: value for key, value in inherited.items() if key in cls.__dataclass_fields__}
    specific = {key: value for key, value in options.items() if key != 'name'}
    return cls(**shared, **specific)

  encoders = {modality: part(ENCODERS, options) for modality, options in config.encoders.items()}
  context = None
  if config.context.name:
    context = part(ENCODERS, config.context)
  return MultimodalModel(
    encoders,
    part(FUSIONS, config.fusion),
    part(HEADS, config.head),
    embeddings,
    context,
    config.modality_dropout,
    special_tokens,
  )
