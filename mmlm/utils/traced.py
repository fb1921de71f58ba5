"""Numbers of a config that may be traced: where several trials train in one program (sweeps/together.py) each has its own."""

import jax


def is_traced(value) -> bool:
  return isinstance(value, jax.Array)


def is_off(value) -> bool:
  """Whether a number is 0, which leaves out what it scales. One that is traced is not: trials that have 0 there have a program of their own."""
  return not is_traced(value) and not value
