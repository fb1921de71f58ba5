"""What takes too long is named: one thread looks at what all others wait for, so that nothing hangs without a word."""

import contextlib
import itertools
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

STUCK = 70  # exit code of a process that waited longer than it may

_numbers = itertools.count()
_waits: dict[int, list] = {}  # [when it began, when to speak next, the watch, what for]


class Watch(NamedTuple):
  """`with watch(lambda: 'batch 3'):` says what is waited for when the block takes longer than `seconds`, again after twice as long, and so on.

  With `stop` seconds the process then ends with exit code 70; 0 for either: never. In a loader process nothing ends it.
  """

  seconds: float = 0.0
  stop: float = 0.0

  def __reduce__(self):
    return Watch, (self.seconds,)

  @contextlib.contextmanager
  def __call__(self, what: Callable[[], str]):
    if not (self.seconds or self.stop):
      yield
      return
    _start()
    number = next(_numbers)
    now = time.monotonic()
    _waits[number] = [now, now + self.seconds if self.seconds else float('inf'), self, what]
    try:
      yield
    finally:
      del _waits[number]


def _start(lock=threading.Lock(), started=[]):  # noqa: B006, B008 of the process
  with lock:
    if not started:
      started.append(threading.Thread(target=_look, daemon=True, name='watch'))
      started[0].start()


def _look(every: float = 0.25):
  while True:
    time.sleep(every)
    for wait in list(_waits.values()):
      began, speak, watch, what = wait
      waited = time.monotonic() - began
      if began + waited > speak:
        wait[1] = began + 2 * waited
        print(
          f'WARNING: still waiting after {waited:.0f} s: {what()}.', file=sys.stderr, flush=True
        )
      if watch.stop and waited > watch.stop:
        print(
          f'mmlm: {what()}: nothing for {waited:.0f} s (watch.stop_seconds). Stopped; the same command goes on from the last '
          'checkpoint.',
          file=sys.stderr,
          flush=True,
        )
        os._exit(STUCK)  # whoever waits may never come back to see that it should stop
