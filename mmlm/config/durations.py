"""Durations in configs: '500 steps', '10 epochs', '90000 examples', '5 %' (of the run)."""

import math
import re

from mmlm.utils.errors import UserError

DURATION = re.compile(r'\s*(\d+(?:\.\d+)?)\s*(%|(?:step|epoch|example)s?)\s*')
EXAMPLES = "'500 steps', '10 epochs' or '90000 examples'"
EXAMPLES_WITH_SHARE = "'500 steps', '10 epochs', '90000 examples' or '5 %' (of the run)"


def parse_duration(text: str, key: str, share: bool = True) -> tuple[float, str]:
  """Returns the amount and the unit of a duration: '10 epochs' -> (10.0, 'epochs').

  Units are steps, epochs, examples and, with `share`, % (of the length of the run).

  Raises:
    UserError: `text`, the value of `key`, is not a duration, or a share that is not allowed.
  """
  match = DURATION.fullmatch(str(text))
  if not match:
    examples = EXAMPLES_WITH_SHARE if share else EXAMPLES
    raise UserError(f'{key}={text!r}: expected a duration such as {examples}.')
  amount = float(match[1])
  if match[2] == '%':
    _check_share(amount, text, key, share)
    return amount, '%'
  return amount, match[2].removesuffix('s') + 's'


def _check_share(amount: float, text: str, key: str, share: bool) -> None:
  if not share:
    raise UserError(
      f'{key}={text!r}: the length of the run cannot be a share of itself. Write {EXAMPLES}.'
    )
  if amount > 100:
    raise UserError(f"{key}={text!r}: a share of the run is at most '100 %'.")


def to_steps(
  text: str, key: str, batch_size: int, steps_per_epoch: int, total_steps: int | None = None
) -> int:
  """Returns a duration in training steps, rounded up.

  Args:
    total_steps: length of the run, of which '5 %' is a share; None for the length itself.
  """
  amount, unit = parse_duration(text, key, share=total_steps is not None)
  if unit == 'steps':
    steps = amount
  elif unit == 'epochs':
    steps = amount * steps_per_epoch
  elif unit == 'examples':
    steps = amount / batch_size
  else:
    assert total_steps is not None
    steps = amount * total_steps / 100
  return math.ceil(steps)
