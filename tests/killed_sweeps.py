"""Kills sweeps at random moments and starts them again, until they end: no finished trial is lost, and none runs twice.

  python -m tests.killed_sweeps --rounds 10            each trial is a stand-in of a second that writes what a run leaves
  python -m tests.killed_sweeps --rounds 10 --real     each trial is a small training

A kill is SIGKILL to the sweep alone, or to it and all of its trials.
"""

import argparse
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
SPEC = 'configs/sentiment/generated.py:smoke,modalities=text'
SPACE = """from mmlm.sweeps.spaces import choices, product
def get_space():
  return product(choices('optimizer.learning_rate', 1e-3, 2e-3, 3e-3), choices('model.dropout', 0.1, 0.2))
"""
# Writes the files of a run slowly, and in `starts.txt` beside them a line for each start and each end.
STAND_IN = """
import json, os, pathlib, sys, time
from mmlm.utils import run_dir as runs
folder, rate = pathlib.Path(sys.argv[1]), float(sys.argv[2])
lock = runs.lock(folder)
with open(folder.parent.parent / "starts.txt", "a") as file: file.write(f"start {folder.name}\\n")
runs.write_json(folder / "config.json", {"train": {"monitor": "accuracy"}})
with runs.watched(folder, 4):
  for step in range(1, 5):
    time.sleep(float(os.environ["STAND_IN"]) / 4)
    runs.write_jsonl(folder / "metrics.jsonl", [{"step": k, "kind": "valid", "accuracy": rate * k} for k in range(1, step + 1)])
with open(folder.parent.parent / "starts.txt", "a") as file: file.write(f"end {folder.name}\\n")
"""


def sweep(folder: pathlib.Path, real: bool) -> None:
  """The sweep itself, in this process."""
  sys.path.insert(0, str(ROOT))
  from mmlm.cli import main
  from mmlm.sweeps import executors

  if not real:

    def command(self, run):
      return [
        sys.executable,
        '-c',
        STAND_IN,
        str(run.folder),
        run.settings['optimizer.learning_rate'],
      ]

    executors.Processes.command = command
    executors.POLL_SECONDS = 0.02
  (folder.parent / 'space.py').write_text(SPACE)
  data = f'--config.data.dir={folder.parent / "data"}'
  sys.argv = [
    'mmlm',
    'sweep',
    SPEC,
    f'--space={folder.parent / "space.py"}',
    f'--workdir={folder}',
    '--jobs=2',
    data,
    '--config.parallel.strategy=jit',
  ]
  main.main()


def ended(folder: pathlib.Path) -> dict:
  """{run that is done: when its log was last written}, by its own files."""
  found = {}
  for path in (folder / 'runs').glob('*/status.json'):
    if json.loads(path.read_text())['state'] == 'done':
      found[path.parent.name] = (path.parent / 'metrics.jsonl').stat().st_mtime_ns
  return found


def start(folder: pathlib.Path, real: bool, seconds: float) -> subprocess.Popen:
  words = [
    sys.executable,
    '-m',
    'tests.killed_sweeps',
    '--sweep',
    str(folder),
    *(['--real'] if real else []),
  ]
  environment = os.environ | {'STAND_IN': str(seconds), 'PYTHONPATH': str(ROOT)}
  return subprocess.Popen(
    words,
    cwd=ROOT,
    env=environment,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
    text=True,
    start_new_session=True,
  )


def children_of(process: subprocess.Popen) -> list[int]:
  """Process ids of the trials that a sweep has started."""
  tasks = pathlib.Path(f'/proc/{process.pid}/task/{process.pid}/children')
  if tasks.exists():
    return [int(word) for word in tasks.read_text().split()]
  return []


def kill(process: subprocess.Popen, with_trials: bool) -> None:
  if with_trials:
    children = children_of(process)
  else:
    children = []
  for number in (process.pid, *children):
    try:
      os.kill(number, signal.SIGKILL)
    except ProcessLookupError:
      continue
  process.wait()


def rounds(
  folder: pathlib.Path, count: int, real: bool = False, seconds: float = 1.0, seed: int = 0
) -> int:
  """Kills living sweeps so many times, one sweep after another, each until it ends; a kill that came too late is none.

  Returns how many trials ended; AssertionError where one was lost or ran twice.
  """
  generator = random.Random(seed)
  left = count
  trials = 0
  while left:
    one = folder / f'sweep_{trials}'
    one.parent.mkdir(parents=True, exist_ok=True)
    landed, before = killed(one, left, real, seconds, generator)
    left = left - landed
    trials = trials + len(finished(one, before, real, seconds))
  return trials


def killed(
  folder: pathlib.Path, count: int, real: bool, seconds: float, generator: random.Random
) -> tuple[int, dict]:
  """(how many kills hit a living sweep, what `ended` told after the last): stops after `count`, or when the sweep has ended by itself."""
  before: dict = {}
  for number in range(count):
    process = start(folder, real, seconds)
    until = time.monotonic() + 600
    while not (folder / 'runs').exists() and process.poll() is None and time.monotonic() < until:
      time.sleep(0.02)  # not only while it still imports
    try:
      _, said = process.communicate(timeout=generator.uniform(0, 4 * seconds))
    except subprocess.TimeoutExpired:
      kill(process, with_trials=bool(generator.randrange(2)))
    else:
      assert process.returncode == 0, said
      return number, before
    now = ended(folder)
    assert all(now.get(run) == when for run, when in before.items()), (before, now)
    print(f'{folder.name}: killed with {len(now)} trials done', flush=True)
    before = now
  return count, before


def finished(folder: pathlib.Path, before: dict, real: bool, seconds: float) -> list[dict]:
  """Lets a sweep end -> its results; AssertionError where a trial is missing, or one that had ended ran again."""
  process = start(folder, real, seconds)
  _, said = process.communicate()
  assert process.returncode == 0, said
  after = ended(folder)
  results = json.loads((folder / 'results.json').read_text())
  assert all(after.get(run) == when for run, when in before.items()), (before, after)
  assert [row['trial'] for row in results] == list(range(6)) and all(
    row['state'] == 'complete' for row in results
  ), results
  if not real:
    lines = (folder / 'starts.txt').read_text().splitlines()
    for run in after:
      assert (
        lines.count(f'end {run}') <= 1 and f'start {run}' not in lines[lines.index(f'end {run}') :]
        if f'end {run}' in lines
        else True
      ), lines
  return results


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--rounds', type=int, default=10)
  parser.add_argument('--real', action='store_true')
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--sweep', type=pathlib.Path, help=argparse.SUPPRESS)
  arguments = parser.parse_args()
  if arguments.sweep:
    sweep(arguments.sweep, arguments.real)
    return
  with tempfile.TemporaryDirectory() as folder:
    trials = rounds(
      pathlib.Path(folder),
      arguments.rounds,
      arguments.real,
      15.0 if arguments.real else 1.0,
      arguments.seed,
    )
  print(f'{arguments.rounds} kills, {trials} trials: nothing lost, nothing run twice.')


if __name__ == '__main__':
  main()
