"""A progress bar for work that takes long."""

import sys
from collections.abc import Iterable
from typing import TypeVar

from tqdm import tqdm

T = TypeVar('T')


def progress(items: Iterable[T], what: str) -> Iterable[T]:
  """Yields the items; after 3 seconds a bar on stderr shows how many are done and the time left."""
  return tqdm(items, what, file=sys.stderr, delay=3, mininterval=3)
