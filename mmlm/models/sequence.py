"""The output of every encoder and fusion."""

from typing import NamedTuple

from jax import Array


class Sequence(NamedTuple):
  """Vectors at the positions of a sequence; `mask` is True where there is one."""

  values: Array  # [B, S, D]
  mask: Array  # [B, S]
