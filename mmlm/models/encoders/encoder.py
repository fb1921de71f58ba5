"""The protocol of encoders, and masks for inputs that have no length.

Axes: B batch, S sequence, D width.
"""

from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jax import Array


class Encoder(nn.Module):
  """Encodes one modality: (values, mask [B, S] or None, train) -> Sequence [B, S, D].

  The attributes below state what other packages need to know of an encoder. The first one has no
  default: every encoder says what it reads.
  """

  reads_features: ClassVar[bool]  # inputs are frames of `width` features, of sounds or precomputed
  family: ClassVar[str] = ''  # pretrained models whose weights it can load (mmlm/pretrained)
  # A network in front of the encoder that may be frozen; its outputs are then the encoder's input.
  backbone: ClassVar[type[nn.Module] | None] = None
  subsampling = 1  # input frames for each position of the output; an option of some encoders


def presence_mask(present: Array | None, values: Array) -> Array:
  """Returns a mask [B, S] for values [B, S, D], all or none of which are present.

  Args:
    present: [B], whether an example has the modality; None if every example has it.
  """
  if present is None:
    present = jnp.ones(values.shape[0], bool)
  batch_size, length = values.shape[:2]
  return jnp.broadcast_to(present[:, None], (batch_size, length))
