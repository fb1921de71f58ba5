"""The protocol of heads.

Axes: B batch, R decoding beams (K of each example), T time, S memory, D width, V vocabulary.
"""

from typing import Any, ClassVar

import flax.linen as nn
from jax import Array

from mmlm.models.attention import DecodeStep
from mmlm.models.sequence import Sequence


class Head(nn.Module):
  """Makes the outputs of a model: (decoder inputs or None, memory or None, train) -> outputs.

  The attributes below state what other packages need to know of a head.
  """

  # What it produces; a task names what it can use (`Task.uses`): 'text', 'aligned text',
  # 'running text', 'classes', 'value', 'masked tokens'.
  produces: ClassVar[str]
  decodes: ClassVar[bool] = False  # it is a `Decoder`
  carries_state: ClassVar[bool] = False  # its state may be carried from batch to batch
  family: ClassVar[str] = ''  # pretrained models whose weights it can load (mmlm/pretrained)
  # Constants here, options of heads that have a decoder and a CTC branch.
  ctc_weight = 0.0  # of CTC in the loss: 0 without a CTC branch, 1 without a decoder
  ctc_labels = ''  # the texts that CTC learns, 'target' or 'transcript'; '' without a CTC branch

  def ctc_logits(self, memory: Sequence, train: bool = False) -> Array:
    """Returns the logits [B, S, V] of the CTC branch."""
    raise NotImplementedError(f'{type(self).__name__} has no CTC branch.')

  @nn.nowrap
  def zero_state(self, batch_size: int) -> Any:
    """Returns the state before the first token, for heads with `carries_state`."""
    raise NotImplementedError(f'{type(self).__name__} carries no state.')


class Decoder(Head):
  """Predicts text token by token.

  `setup` defines `output`, a `TokenEmbedding` whose `layer` makes the logits from `hidden`.
  """

  produces: ClassVar[str] = 'text'
  decodes: ClassVar[bool] = True

  def __call__(
    self,
    tokens: Array,
    memory: Sequence | None,
    train: bool = False,
  ) -> Array:
    """Returns logits [B, T, V] for inputs [B, T], the target shifted right."""
    return self.output.logits(self.hidden(tokens, memory, train))

  def hidden(
    self,
    tokens: Array,
    memory: Sequence | None,
    train: bool = False,
  ) -> Array:
    """Returns the hidden states [B, T, D] that the output layer reads, for inputs [B, T]."""
    raise NotImplementedError

  def step(
    self,
    tokens: Array,
    memory: Sequence | None,
    step: DecodeStep,
  ) -> Array:
    """Returns logits [R, V] for the tokens [R] at position `step.index`.

    State is in the collection 'cache', beams first.
    """
    raise NotImplementedError
