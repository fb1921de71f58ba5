"""Encoders, a fusion and a head as one module: the only model there is.

Axes: B batch, R decoding rows, T time, V vocabulary.
"""

from collections.abc import Mapping

import flax.linen as nn

from mmlm.models.attention import DecodeStep
from mmlm.models.embeddings import TokenEmbedding
from mmlm.models.encoders import ENCODERS
from mmlm.models.fusion import FUSIONS
from mmlm.models.heads import HEADS
from mmlm.models.sequence import Sequence


class MultimodalModel(nn.Module):
  """A batch is a flat dict: modality `m` and, where it may be shorter or missing, `m_mask`."""

  encoders: Mapping[str, nn.Module]
  fusion: nn.Module
  head: nn.Module
  embeddings: nn.Module | None = None  # of tokens, where several parts share them

  def encode(self, batch: dict, train=False) -> Sequence | None:
    """The memory of a batch; None for a model without encoders."""
    if not self.encoders:
      return None
    sequences = {m: encoder(batch[m], batch.get(f'{m}_mask'), train) for m, encoder in self.encoders.items()}
    return self.fusion(sequences, train)

  def __call__(self, batch: dict, inputs, train=False):
    """Logits [B, T, V] for the decoder inputs [B, T]."""
    return self.head(inputs, self.encode(batch, train), train)

  def hidden(self, batch: dict, inputs, train=False):
    """What the output layer sees, [B, T, D], and that layer, [V, D]: their product is the logits."""
    return self.head.hidden(inputs, self.encode(batch, train), train), self.head.output.table

  def step(self, tokens, memory: Sequence | None, step: DecodeStep):
    """One decoding step: tokens [R] -> logits [R, V]."""
    return self.head.step(tokens, memory, step)


def build_model(config, vocab_size: int, max_length: int) -> MultimodalModel:
  """The model of a completed `config.model`; `max_length` is the longest target or text."""
  embeddings = TokenEmbedding(vocab_size, config.dim, config.dtype) if config.shared_embeddings else None
  inherited = dict(
    dim=config.dim, dropout=config.dropout, dtype=config.dtype, vocab_size=vocab_size, max_length=max_length, embeddings=embeddings
  )

  def part(table, options):
    cls = table[options.name]
    shared = {key: value for key, value in inherited.items() if key in cls.__dataclass_fields__}
    return cls(**shared, **{key: value for key, value in options.items() if key != 'name'})

  encoders = {modality: part(ENCODERS, options) for modality, options in config.encoders.items()}
  return MultimodalModel(encoders, part(FUSIONS, config.fusion), part(HEADS, config.head), embeddings)
