"""What every encoder gives and every fusion takes."""

from typing import NamedTuple

import jax


class Sequence(NamedTuple):
  """values [B, S, D] and mask [B, S] (True where there is something)."""

  values: jax.Array
  mask: jax.Array
