"""Choices by name: the nearest valid name in a message about a wrong one."""

import difflib

from mmlm.utils.errors import UserError


def nearest(name: str, names) -> str:
  """The member of `names` that looks most like `name`."""
  names = list(map(str, names))
  return (difflib.get_close_matches(name, names, n=1, cutoff=0.0) or [''])[0]


def one_of(key: str, name, names):
  """`name`, the value of `key`, if it is one of `names`; UserError otherwise."""
  if name not in names:
    raise UserError(
      f'{key}: no {name!r}. Nearest: {nearest(str(name), names)!r} of {sorted(names)}.'
    )
  return name
