"""Builders of data sets, and the one way in which their preparation shows progress."""

import sys
import time


def progress(items, what: str, total: int | None = None, every: float = 3.0):
  """Yields the items; from `every` seconds on, prints a line now and then: how many, how fast, how long
  still.
  """
  total = len(items) if total is None else total
  start = said = time.monotonic()
  for done, item in enumerate(items):
    now = time.monotonic()
    if now - said >= every:
      said, rate = now, done / (now - start)
      left = f', {(total - done) / rate:.0f} s left' if rate else ''
      print(f'{what}: {done} of {total}, {rate:.0f}/s{left}', file=sys.stderr, flush=True)
    yield item
