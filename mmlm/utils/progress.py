"""A progress bar for work that takes long."""

import sys

from tqdm import tqdm


def progress(items, what: str):
  """The items; what takes more than 3 seconds shows on stderr how many are done, how fast, and how long the rest will take."""
  return tqdm(items, what, file=sys.stderr, delay=3, mininterval=3)
