"""The protocol of fusions, and what several of them use.

Axes: B batch, S sequence, D width, L latents.
"""

from collections.abc import Iterable

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from mmlm.models.sequence import Sequence


class Fusion(nn.Module):
  """Makes one memory of the encoded modalities: ({modality: Sequence}, train) -> Sequence.

  Any subset of modalities may be present: one that an example lacks is all mask, and adds nothing.
  """

  @staticmethod
  def keeps_positions(modalities: Iterable[str], main: str) -> list[str]:
    """Returns the modalities whose positions begin the memory, in their order.

    Args:
      modalities: of the model.
      main: the option `main` of the fusion; '' where it has none or it is not set.
    """
    raise NotImplementedError('A fusion states the modalities that keep their positions.')

  def __call__(self, sequences: dict[str, Sequence], train: bool = False) -> Sequence:
    raise NotImplementedError


def main_modality(modalities: Iterable[str], name: str) -> str:
  """Returns the modality that others enrich: `name`; if it is '', 'text' or the first by name."""
  if name:
    return name
  if 'text' in modalities:
    return 'text'
  return min(modalities)


class MainFusion(Fusion):
  """A fusion that enriches one modality, `main`, by the others; positions are those of main."""

  dim: int
  main: str = ''

  @staticmethod
  def keeps_positions(modalities: Iterable[str], main: str) -> list[str]:
    """Returns the main modality."""
    return [main_modality(modalities, main)]

  def split(self, sequences: dict[str, Sequence]) -> tuple[Sequence, dict[str, Sequence]]:
    """Returns the main sequence, and the others in the order of their names."""
    main = main_modality(sequences, self.main)
    others = {name: sequences[name] for name in sorted(sequences) if name != main}
    return sequences[main], others


def concatenated(sequences: Iterable[Sequence]) -> Sequence:
  """Concatenates sequences in time; masked values become 0."""
  all_values, masks = zip(*sequences)
  mask = jnp.concatenate(masks, 1)
  values = jnp.concatenate(all_values, 1)
  return Sequence(jnp.where(mask[..., None], values, 0), mask)


def presence(mask: Array, values: Array) -> Array:
  """Returns [B, 1, 1], 1 for an example that has the modality; in the type of `values`."""
  present = mask.any(1)
  return present[:, None, None].astype(values.dtype)


def mean_of(sequence: Sequence) -> Array:
  """Returns the mean [B, D] of the unmasked values; 0 if there are none."""
  values, mask = sequence
  weights = mask[..., None].astype(values.dtype)
  total = (values * weights).sum(1)
  return total / jnp.maximum(weights.sum(1), 1)


def vector_memory(vector: Array, sequences: dict[str, Sequence]) -> Sequence:
  """Returns [B, D] as a sequence of one position, for examples that have any modality."""
  any_present = [mask.any(1) for _, mask in sequences.values()]
  mask = jnp.stack(any_present).any(0)[:, None]
  values = jnp.where(mask, vector, 0)
  return Sequence(values[:, None], mask)


def latent_vectors(
  module: nn.Module,
  name: str,
  batch_size: int,
) -> Array:
  """Returns learned vectors of a module, the same for every example: [B, L, D]."""
  init = nn.initializers.normal(0.02)
  latents = module.param(name, init, (module.latents, module.dim))
  latents = latents.astype(module.dtype)
  return jnp.broadcast_to(latents, (batch_size, *latents.shape))
