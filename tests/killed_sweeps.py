"""Kills sweeps at random moments and resumes them: no trial may be lost or run twice.

  python -m tests.killed_sweeps --rounds 10            each trial is a stand-in of one second
  python -m tests.killed_sweeps --rounds 10 --real     each trial is a small training

A kill is SIGKILL to the sweep alone, or to it and all of its trials.
"""

import argparse
import contextlib
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
TRIALS = 6
SPACE = """from mmlm.sweeps.spaces import choices, product

def get_space():
  return product(
    choices('optimizer.learning_rate', 1e-3, 2e-3, 3e-3), choices('model.dropout', 0.1, 0.2)
  )
"""
# Writes the files of a run slowly, and a line for each start and each end into `starts.txt`.
STAND_IN = """
import os, pathlib, sys, time
from mmlm.utils import run_dir

folder = pathlib.Path(sys.argv[1])
rate = float(sys.argv[2])

def note(text):
  with open(folder.parent.parent / 'starts.txt', 'a') as file:
    file.write(f'{text} {folder.name}\\n')

lock = run_dir.lock(folder)
note('start')
run_dir.write_json(folder / 'config.json', {'train': {'monitor': 'accuracy'}})
log = []
with run_dir.watched(folder, 4):
  for step in range(1, 5):
    time.sleep(float(os.environ['STAND_IN']) / 4)
    log.append({'step': step, 'kind': 'valid', 'accuracy': rate * step})
    run_dir.write_jsonl(folder / 'metrics.jsonl', log)
note('end')
"""


def sweep(folder: pathlib.Path, real: bool) -> None:
  """Runs the sweep in this process."""
  sys.path.insert(0, str(ROOT))
  from mmlm.cli import main
  from mmlm.sweeps import executors

  if not real:

    def command(self: executors.Processes, run: executors.Run) -> list[str]:
      rate = run.settings['optimizer.learning_rate']
      return [sys.executable, '-c', STAND_IN, str(run.folder), rate]

    executors.Processes.command = command
    executors.POLL_SECONDS = 0.02
  space = folder.parent / 'space.py'
  space.write_text(SPACE)
  sys.argv = [
    'mmlm',
    'sweep',
    SPEC,
    f'--space={space}',
    f'--workdir={folder}',
    '--jobs=2',
    f'--config.data.dir={folder.parent / "data"}',
    '--config.parallel.strategy=jit',
  ]
  main.main()


def start(folder: pathlib.Path, real: bool, seconds: float) -> subprocess.Popen:
  """Starts the sweep as a process; `seconds` is how long a stand-in works."""
  words = [sys.executable, '-m', 'tests.killed_sweeps', '--sweep', str(folder)]
  if real:
    words.append('--real')
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


def complete_runs(folder: pathlib.Path) -> dict[str, int]:
  """Returns {run that is done: when its log was written last}."""
  complete = {}
  for path in (folder / 'runs').glob('*/status.json'):
    if json.loads(path.read_text())['state'] == 'done':
      log = path.parent / 'metrics.jsonl'
      complete[path.parent.name] = log.stat().st_mtime_ns
  return complete


def check_unchanged(folder: pathlib.Path, before: dict[str, int]) -> dict[str, int]:
  """Returns the complete runs; AssertionError where one that was complete was written again."""
  now = complete_runs(folder)
  assert before.items() <= now.items(), (before, now)
  return now


def children_of(process: subprocess.Popen) -> list[int]:
  """Returns the process ids of the trials that a sweep has started."""
  tasks = pathlib.Path(f'/proc/{process.pid}/task/{process.pid}/children')
  if tasks.exists():
    return [int(word) for word in tasks.read_text().split()]
  return []


def kill(process: subprocess.Popen, with_trials: bool) -> None:
  """Kills a sweep, and its trials if asked to."""
  children = children_of(process) if with_trials else []
  for number in (process.pid, *children):
    with contextlib.suppress(ProcessLookupError):
      os.kill(number, signal.SIGKILL)
  process.wait()


def rounds(
  folder: pathlib.Path, count: int, real: bool = False, seconds: float = 1.0, seed: int = 0
) -> int:
  """Kills sweeps `count` times, one sweep after another, each until it ends.

  A kill that comes after the end of a sweep does not count.

  Returns:
    How many trials ended; AssertionError where one was lost or ran twice.
  """
  generator = random.Random(seed)
  remaining = count
  trials = 0
  while remaining:
    of_sweep = folder / f'sweep_{trials}'
    of_sweep.parent.mkdir(parents=True, exist_ok=True)
    kills, before = kill_repeatedly(of_sweep, remaining, real, seconds, generator)
    remaining -= kills
    trials += len(run_to_its_end(of_sweep, before, real, seconds))
  return trials


def kill_repeatedly(
  folder: pathlib.Path, count: int, real: bool, seconds: float, generator: random.Random
) -> tuple[int, dict[str, int]]:
  """Kills a sweep up to `count` times, or until it has ended.

  Returns:
    How many kills came before its end, and the runs that were complete after the last one.
  """
  before: dict[str, int] = {}
  for number in range(count):
    process = start(folder, real, seconds)
    wait_for_first_run(folder, process)
    try:
      _, errors = process.communicate(timeout=generator.uniform(0, 4 * seconds))
    except subprocess.TimeoutExpired:
      kill(process, with_trials=bool(generator.randrange(2)))
    else:
      assert process.returncode == 0, errors
      return number, before
    before = check_unchanged(folder, before)
    print(f'{folder.name}: killed with {len(before)} trials done', flush=True)
  return count, before


def wait_for_first_run(folder: pathlib.Path, process: subprocess.Popen) -> None:
  """Waits until a sweep has started a run, so that not all kills hit its imports."""
  until = time.monotonic() + 600
  while time.monotonic() < until:
    if (folder / 'runs').exists() or process.poll() is not None:
      return
    time.sleep(0.02)


def run_to_its_end(
  folder: pathlib.Path, before: dict[str, int], real: bool, seconds: float
) -> list[dict]:
  """Lets a sweep end and returns its results.

  AssertionError where a trial is missing, or one that had ended ran again.
  """
  process = start(folder, real, seconds)
  _, errors = process.communicate()
  assert process.returncode == 0, errors
  after = check_unchanged(folder, before)
  results = json.loads((folder / 'results.json').read_text())
  assert [result['trial'] for result in results] == list(range(TRIALS)), results
  assert {result['state'] for result in results} == {'complete'}, results
  if not real:
    notes = (folder / 'starts.txt').read_text().splitlines()
    for run in after:
      check_that_it_ended_once(run, notes)
  return results


def check_that_it_ended_once(run: str, notes: list[str]) -> None:
  """AssertionError where a stand-in started again after its end."""
  end = f'end {run}'
  if end in notes:
    assert notes.count(end) == 1, notes
    assert f'start {run}' not in notes[notes.index(end) :], notes


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--rounds', type=int, default=10)
  parser.add_argument('--real', action='store_true')
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--sweep', type=pathlib.Path, help=argparse.SUPPRESS)
  options = parser.parse_args()
  if options.sweep:
    sweep(options.sweep, options.real)
    return
  seconds = 15.0 if options.real else 1.0
  with tempfile.TemporaryDirectory() as folder:
    trials = rounds(pathlib.Path(folder), options.rounds, options.real, seconds, options.seed)
  print(f'{options.rounds} kills, {trials} trials: nothing lost, nothing run twice.')


if __name__ == '__main__':
  main()
