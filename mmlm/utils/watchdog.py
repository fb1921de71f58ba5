"""Warnings about waits that take too long: one thread watches the waits of all others."""

import contextlib
import itertools
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

STUCK = 70  # exit code of a process that waited too long
INTERVAL = 0.25  # seconds between looks at the waits

_numbers = itertools.count()
_waits: dict[int, '_Wait'] = {}
_thread_lock = threading.Lock()
_threads: list[threading.Thread] = []  # of this process, at most one


class Watch(NamedTuple):
  """`with watch(lambda: 'batch 3'):` warns when the block takes longer than `seconds`.

  It warns again after twice as long, and so on. After `stop` seconds the process ends with exit
  code 70. 0 for either: never. In a loader process nothing ends it.
  """

  seconds: float = 0.0
  stop: float = 0.0

  def __reduce__(self) -> tuple:
    return Watch, (self.seconds,)

  @contextlib.contextmanager
  def __call__(self, what: Callable[[], str]) -> Iterator[None]:
    if not (self.seconds or self.stop):
      yield
      return
    _start()
    number = next(_numbers)
    _waits[number] = _Wait(self, what)
    try:
      yield
    finally:
      del _waits[number]


class _Wait:
  """One block that is being waited for."""

  def __init__(self, watch: Watch, what: Callable[[], str]):
    self.watch = watch
    self.what = what
    self.began = time.monotonic()
    self.next_warning = watch.seconds or float('inf')  # in seconds since it began

  def check(self) -> None:
    """Warns, or ends the process, if it is time."""
    waited = time.monotonic() - self.began
    if waited > self.next_warning:
      self.next_warning = 2 * waited
      message = f'WARNING: still waiting after {waited:.0f} s: {self.what()}.'
      print(message, file=sys.stderr, flush=True)
    if self.watch.stop and waited > self.watch.stop:
      print(
        f'mmlm: {self.what()}: nothing for {waited:.0f} s (watch.stop_seconds). Stopped; the same '
        'command resumes from the last checkpoint.',
        file=sys.stderr,
        flush=True,
      )
      os._exit(STUCK)  # the waiting thread may never return to see a flag


def _start() -> None:
  with _thread_lock:
    if not _threads:
      _threads.append(threading.Thread(target=_run, daemon=True, name='watch'))
      _threads[0].start()


def _run() -> None:
  while True:
    time.sleep(INTERVAL)
    for wait in list(_waits.values()):
      wait.check()
