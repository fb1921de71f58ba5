"""Loader processes that are killed, asked to end, or lose their main process."""

import multiprocessing
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from mmlm.data import batching
from mmlm.data.pipeline import Loader, LostLoader, Table, stream

ROOT = pathlib.Path(__file__).resolve().parents[2]
COUNT = 20
BATCH_SIZE = 8
# The main process prints the number of its loader and kills itself.
MAIN = """
import multiprocessing, os, signal, sys
sys.path[:0] = [{tests!r}, {root!r}]
from absl import flags
from test_loader_processes import small_loader, stream
if __name__ == '__main__':
  flags.FLAGS.mark_as_parsed()
  loader, plan = small_loader()
  with stream(plan, loader, 0, 400, workers=1) as batches:
    next(batches)
    print(*[process.pid for process in multiprocessing.active_children()], flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def small_loader():
  """Returns a loader of examples without fields, and its plan."""
  ids = [f'e{i}' for i in range(COUNT)]
  targets = [[i % 7] for i in range(COUNT)]
  table = Table(ids, np.arange(COUNT), targets, [[]] * COUNT)
  loader = Loader([{'id': name} for name in ids], table, (), [], BATCH_SIZE)
  return loader, batching.TrainPlan(table.lengths, BATCH_SIZE, (2,), seed=1)


def test_a_killed_loader_is_reported_and_one_that_is_asked_to_end_finishes():
  loader, plan = small_loader()
  with stream(plan, loader, 0, 400, workers=1) as batches:
    next(batches)
    (process,) = multiprocessing.active_children()
    process.terminate()
    time.sleep(0.5)
    assert process.is_alive()
    for _ in range(20):
      next(batches)
    process.kill()
    message = 'a loader process ended before its time .*exit code -9'
    with pytest.raises(LostLoader, match=message):
      list(batches)


def test_a_killed_main_process_leaves_no_loader(tmp_path):
  script = tmp_path / 'main.py'
  tests = pathlib.Path(__file__).parent
  script.write_text(MAIN.format(tests=str(tests), root=str(ROOT)))
  with open(tmp_path / 'out', 'w+') as out:  # no pipe, which a loader would hold open
    process = subprocess.run([sys.executable, script], stdout=out, timeout=200)
    assert process.returncode == -signal.SIGKILL
    out.seek(0)
    (loader,) = [int(word) for word in out.read().split()]
  for _ in range(100):
    if not is_alive(loader):
      return
    time.sleep(0.1)
  raise AssertionError('the loader still runs')


def is_alive(number: int) -> bool:
  try:
    status = pathlib.Path(f'/proc/{number}/stat').read_text()
  except FileNotFoundError:
    return False
  state = status.rpartition(')')[2].split()[0]
  return state != 'Z'
