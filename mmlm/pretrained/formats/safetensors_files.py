"""Reading of safetensors files, and the check that a file holds the variables of a model."""

import pathlib

import numpy as np
from safetensors import SafetensorError, safe_open

from mmlm.utils.errors import UserError
from mmlm.utils.pytree import differences

SHOWN = 20  # differences in a message

Shape = tuple[int, ...]


def read_safetensors(path: pathlib.Path, prefix: str = '') -> dict[str, np.ndarray]:
  """Reads {name: array} in the types of the file; `prefix` is removed from names that have it.

  Raises:
    UserError: the file is missing, cut or damaged.
  """
  state = {}
  try:
    with safe_open(str(path), 'numpy') as file:
      for name in sorted(file.keys()):
        short_name = name.removeprefix(prefix)
        state[short_name] = file.get_tensor(name)
  except (SafetensorError, OSError, ValueError, TypeError) as error:
    raise UserError(f'{path}: cannot be read ({error}).') from None
  return state


def check_shapes(state: dict[str, np.ndarray], expected: dict[str, Shape], title: str) -> None:
  """Raises UserError, which begins with `title`, unless the variables have the expected shapes."""
  shapes = {}
  for name, array in state.items():
    shapes[name] = array.shape
  wrong = differences(shapes, expected)
  if not wrong:
    return
  head = f'{title}; {len(wrong)} variables differ (in the file -> expected):'
  shown = wrong[:SHOWN]
  lines = [head, *shown]
  raise UserError('\n  '.join(lines))
