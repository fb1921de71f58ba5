"""Choices by name: the nearest valid name in a message about a wrong one."""

import difflib
from collections.abc import Collection, Iterable
from typing import Any

from mmlm.utils.errors import UserError


def nearest(name: str, names: Iterable[Any]) -> str:
  """Returns the member of `names` that is most similar to `name`; '' if there are none."""
  candidates = list(map(str, names))
  matches = difflib.get_close_matches(name, candidates, n=1, cutoff=0.0)
  return matches[0] if matches else ''


def one_of(key: str, name: Any, names: Collection[Any]) -> Any:
  """Returns `name`, the value of `key`, if it is one of `names`; raises UserError otherwise."""
  if name not in names:
    raise UserError(
      f'{key}: no {name!r}. Nearest: {nearest(str(name), names)!r} of {sorted(names)}.'
    )
  return name
