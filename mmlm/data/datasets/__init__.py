"""Builders of data sets, and the one way in which their preparation shows progress."""

import sys
import time


def progress(items, what: str):
  """Yields the items; every 3 seconds it prints how many are done, how fast, and how long the rest will take."""
  start = said = time.monotonic()
  for done, item in enumerate(items):
    if done and time.monotonic() - said > 3:
      said = time.monotonic()
      rate = done / (said - start)
      left = (len(items) - done) / rate
      print(f'{what}: {done} of {len(items)}, {rate:.3g}/s, {left:.0f} s left', file=sys.stderr, flush=True)
    yield item
