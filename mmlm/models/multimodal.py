"""Encoders, a fusion and a head as one module: the only model there is.

Axes: B batch, M modalities, R decoding rows, S sequence, T time or parts, D width, V vocabulary.
"""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmlm.data.tokenizers.special_tokens import DEFAULT_SPECIAL_TOKENS, SpecialTokens
from mmlm.models.attention import DecodeStep
from mmlm.models.embeddings import TokenEmbedding
from mmlm.models.encoders import ENCODERS
from mmlm.models.fusion import FUSIONS
from mmlm.models.heads import HEADS
from mmlm.models.sequence import Sequence
from mmlm.utils.traced import is_off


class MultimodalModel(nn.Module):
  """A batch is a flat dict: modality `m` and, where it may be shorter or missing, `m_mask`."""

  encoders: Mapping[str, nn.Module]
  fusion: nn.Module
  head: nn.Module
  embeddings: nn.Module | None = None  # of tokens, where several parts share them
  context: nn.Module | None = (
    None  # an encoder over the parts of an example, each of which is fused by itself
  )
  modality_dropout: float = (
    0.0  # in training each modality of an example is left out with this probability, but never all
  )
  special_tokens: SpecialTokens = (
    SpecialTokens()
  )  # of the vocabulary that the model reads and writes

  def encode(self, batch: dict, train=False) -> Sequence | None:
    """The memory of a batch; None for a model without encoders."""
    if not self.encoders:
      return None
    masks = self._left_out({m: batch.get(f'{m}_mask') for m in self.encoders}, train)
    sequences = {m: encoder(batch[m], masks[m], train) for m, encoder in self.encoders.items()}
    if self.context is None:
      return self.fusion(sequences, train)
    return self._by_part(sequences, batch['label_mask'], train)

  def _left_out(self, masks: dict, train) -> dict:
    if not train or is_off(self.modality_dropout) or len(masks) < 2:
      return masks
    draws = jax.random.uniform(
      self.make_rng('dropout'), (len(next(iter(masks.values()))), len(masks))
    )
    kept = (draws >= self.modality_dropout) | (draws == draws.max(1, keepdims=True))  # [B, M]
    result = {}
    for i, (m, mask) in enumerate(masks.items()):
      result[m] = mask & kept[:, i].reshape(
        -1,
        *[1] * (mask.ndim - 1),
      )
    return result

  def _by_part(self, sequences: dict[str, Sequence], there, train) -> Sequence:
    """Sequences whose place t is of part t [B, T, D] -> the parts fused one by one, then seen together [B, T, D]."""

    def fold(x):
      return x.reshape(-1, 1, *x.shape[2:])

    fused = self.fusion(
      {m: Sequence(*map(fold, sequence)) for m, sequence in sequences.items()}, train
    )  # [B T, S, D]
    kept = fused.mask[..., None]
    mean = jnp.where(
      kept,
      fused.values,
      0,
    ).sum(1) / jnp.maximum(kept.sum(1), 1)
    return self.context(mean.reshape(*there.shape, -1), there, train)

  def __call__(self, batch: dict, inputs, train=False):
    """Logits [B, T, V] for the decoder inputs [B, T]."""
    return self.head(inputs, self.encode(batch, train), train)

  def hidden(self, batch: dict, inputs, train=False):
    """What the output layer sees, [B, T, D], and that layer, [V, D]: their product is the logits. A batch of packed documents tells its
    segments and positions [B, T].
    """
    places = {name: batch[name] for name in ('segments', 'positions') if name in batch}
    return self.head.output.layer(
      self.head.hidden(inputs, self.encode(batch, train), train, **places)
    )

  def branches(self, batch: dict, inputs, train=False):
    """What `hidden` gives, None of a head without a decoder, and of its CTC branch the logits [B, S, V] and where there are any [B, S]."""
    memory = self.encode(batch, train)
    if hasattr(self.head, 'hidden'):
      decoder = self.head.output.layer(self.head.hidden(inputs, memory, train))
    else:
      decoder = None
    return decoder, self.head.frames(memory, train), memory.mask

  def frames(self, memory: Sequence):
    """Logits [B, S, V] of the CTC branch."""
    return self.head.frames(memory)

  def step(self, tokens, memory: Sequence | None, step: DecodeStep):
    """One decoding step: tokens [R] -> logits [R, V]."""
    return self.head.step(tokens, memory, step)


def build_model(
  config, vocab_size: int, max_length: int, special_tokens: SpecialTokens = DEFAULT_SPECIAL_TOKENS
) -> MultimodalModel:
  """The model of a completed `config.model`; `max_length` is the longest target or text."""
  if config.shared_embeddings:
    embeddings = TokenEmbedding(vocab_size, config.dim, config.dtype)
  else:
    embeddings = None
  inherited = dict(
    dim=config.dim,
    dropout=config.dropout,
    dtype=config.dtype,
    vocab_size=vocab_size,
    max_length=max_length,
    embeddings=embeddings,
  )

  def part(table, options):
    cls = table[options.name]
    shared = {key: value for key, value in inherited.items() if key in cls.__dataclass_fields__}
    return cls(**shared, **{key: value for key, value in options.items() if key != 'name'})

  encoders = {modality: part(ENCODERS, options) for modality, options in config.encoders.items()}
  if config.context.name:
    context = part(ENCODERS, config.context)
  else:
    context = None
  return MultimodalModel(
    encoders,
    part(FUSIONS, config.fusion),
    part(HEADS, config.head),
    embeddings,
    context,
    config.modality_dropout,
    special_tokens,
  )
