"""The output of every encoder and fusion."""

from typing import NamedTuple

import jax


class Sequence(NamedTuple):
  """Vectors at the positions of a sequence; `mask` is True where there is one."""

  values: jax.Array  # [B, S, D]
  mask: jax.Array  # [B, S]
