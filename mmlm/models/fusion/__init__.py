"""Fusions: {modality: Sequence} -> Sequence.

A new fusion is a subclass of `Fusion` and one line in `FUSIONS`, which maps the names of configs to
classes.
"""

from mmlm.models.fusion.fusion import Fusion
from mmlm.models.fusion.gated_fusions import AdaptationGate, Gated, Selective
from mmlm.models.fusion.sequence_fusions import (
  Bottleneck,
  Concatenation,
  CrossAttention,
  Resampler,
)
from mmlm.models.fusion.vector_fusions import Late, LowRank, Tensor

FUSIONS: dict[str, type[Fusion]] = {
  'concatenation': Concatenation,
  'late': Late,
  'gated': Gated,
  'selective': Selective,
  'cross_attention': CrossAttention,
  'bottleneck': Bottleneck,
  'tensor': Tensor,
  'low_rank': LowRank,
  'adaptation_gate': AdaptationGate,
  'resampler': Resampler,
}
