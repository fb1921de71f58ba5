"""Numbers of a config that may be traced.

Where several trials are trained by one program (sweeps/together.py) each has its own.
"""

from typing import Any

from jax import Array


def is_traced(value: Any) -> bool:
  """Whether a number is an array of a program that is being traced."""
  return isinstance(value, Array)


def is_off(value: Any) -> bool:
  """Whether a number is 0, so that the operation that it scales can be left out.

  A traced number never is: trials in which it is 0 have a program of their own.
  """
  return not is_traced(value) and not value
