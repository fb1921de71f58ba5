"""Random faults, after each of which the same commands end with the bits of a run without faults.

  python -m tests.faults [--rounds 50] [--seed 0] [--only kill_in_training,flipped_byte]
                         [--config CONFIG]

Each round trains a small form of a config in a new folder, harms it in one way (FAULTS), gives the
same commands again, and compares every array of every checkpoint, metrics.jsonl without its times,
predictions and scores with those of an undisturbed run. No process and no temporary file may
remain. A round that is impossible on this machine (a full disk needs a small tmpfs, so root) is
counted as such. The exit code is 1 if a round failed; its folder is kept.
"""

import argparse
import json
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
import uuid
from collections.abc import Callable

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from mmlm.utils.run_dir import LOCK, is_locked  # noqa: E402

CONFIG = 'configs/sentiment/generated.py:smoke,modalities=text'
STEPS = 12
EVERY = 2  # steps between two checkpoints
SETTINGS = {
  'train.duration': f'{STEPS} steps',
  'train.log_every': '1 steps',
  'train.eval_every': f'{EVERY} steps',
  'train.keep_latest': 2,
  'train.monitor': 'loss',
  'data.max_valid_examples': 16,
  'evaluate.shuffled': False,
  'evaluate.bootstrap_samples': 5,
  'parallel.strategy': 'jit',
}
TIMES = ('seconds', 'examples_per_second')
PATIENCE = 1800  # seconds that a command may take
LOST_PEER = 240  # seconds in which a process must see that another one is gone
MARK = 'MMLM_FAULTS'  # in the environment of every process of this test
INTERRUPTED = 75  # exit code after SIGTERM
ITEMS = ('params', 'ema', 'rest')


class NotRun(Exception):
  """Why a fault is impossible on this machine."""


class Place:
  """A folder with prepared data, compiled programs and the undisturbed run."""

  def __init__(self, folder: pathlib.Path, config: str):
    self.folder = folder
    self.config = config
    self.output = folder / 'output.txt'  # of the last command
    self.mark = uuid.uuid4().hex
    self.environment = os.environ | {
      MARK: self.mark,
      'PYTHONPATH': str(ROOT),
      'PYTHONUNBUFFERED': '1',
      'JAX_COMPILATION_CACHE_DIR': str(folder / 'cache'),
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
      'JAX_PLATFORMS': os.environ.get('JAX_PLATFORMS', 'cpu'),
    }
    self._expected: dict[int, dict] = {}
    self.undisturbed = self.run_undisturbed(1)

  def run_undisturbed(self, processes: int) -> 'Run':
    """Trains as so many processes and evaluates; `expected` then has the contents."""
    run = Run(self, self.folder / f'undisturbed-{processes}', processes)
    run.train()
    began = time.monotonic()
    run.evaluate()
    self.evaluation_seconds = time.monotonic() - began
    self._expected[processes] = contents(run.folder)
    return run

  def expected(self, processes: int) -> dict:
    """Returns the contents of a run: sums over two devices have other bits than those of one."""
    if processes not in self._expected:
      self.run_undisturbed(processes)
    return self._expected[processes]

  def processes(self) -> dict[int, str]:
    """Returns {number: command line} of all living processes with the mark."""
    alive = {}
    for entry in pathlib.Path('/proc').glob('[0-9]*'):
      try:
        if self._is_ours(entry):
          command = (entry / 'cmdline').read_bytes()
          alive[int(entry.name)] = command.replace(b'\0', b' ').decode()
      except OSError:  # it has ended, or belongs to another user
        continue
    return alive

  def _is_ours(self, entry: pathlib.Path) -> bool:
    """Returns whether a process of /proc has the mark and has not ended."""
    if f'{MARK}={self.mark}'.encode() not in (entry / 'environ').read_bytes():
      return False
    state = (entry / 'stat').read_text().rpartition(')')[2].split()[0]
    return state != 'Z'


class Run:
  """A run folder and the two commands that make it complete.

  Args:
    processes: number of processes that train it together, each with one device.
  """

  def __init__(self, place: Place, folder: pathlib.Path, processes: int = 1):
    self.place = place
    self.folder = folder
    self.processes = processes
    self.output = ''  # of the last command that has ended

  def start(self, *argv: object, workers: int = 0) -> subprocess.Popen:
    """Starts a command; processes that train together write to one file."""
    words = [str(word) for word in argv]
    if argv[0] == 'train':
      words += self._settings(workers)
    mode = 'ab' if self.processes > 1 else 'wb'
    with open(self.place.output, mode) as out:
      return subprocess.Popen(
        [sys.executable, '-m', 'mmlm', *words],
        cwd=ROOT,
        env=self.place.environment,
        stdout=out,
        stderr=subprocess.STDOUT,
        start_new_session=True,
      )

  def _settings(self, workers: int) -> list[str]:
    settings = SETTINGS | {'data.dir': self.place.folder / 'data', 'data.workers': workers}
    if self.processes > 1:
      settings['parallel.strategy'] = 'mesh'
    return [f'--config.{key}={value}' for key, value in settings.items()]

  def start_training(self, workers: int = 0) -> subprocess.Popen:
    return self.start('train', self.place.config, '--workdir', self.folder, workers=workers)

  def start_together(self) -> list[subprocess.Popen]:
    """Starts all processes of the training."""
    with socket.socket() as free:
      free.bind(('127.0.0.1', 0))
      port = free.getsockname()[1]
    train = ['train', self.place.config, '--workdir', self.folder, '--config.parallel.mesh=data=-1']
    train += [f'--coordinator=127.0.0.1:{port}', f'--processes={self.processes}']
    return [self.start(*train, f'--process={i}') for i in range(self.processes)]

  def end(self, process: subprocess.Popen, *allowed: int, patience: float = PATIENCE) -> int:
    """Waits for a command and returns its exit code.

    Args:
      allowed: exit codes; none = all but 0.
    """
    try:
      code = process.wait(patience)
    except subprocess.TimeoutExpired:
      process.kill()
      raise AssertionError(f'a command hangs: {process.args}') from None
    self.output = self.place.output.read_text(errors='replace')
    is_allowed = code in allowed if allowed else code != 0
    if not is_allowed:
      expected = allowed or 'another'
      raise AssertionError(f'exit code {code}, not {expected}:\n{self.output[-3000:]}')
    return code

  def train(self) -> None:
    processes = [self.start_training()] if self.processes == 1 else self.start_together()
    for process in processes:
      self.end(process, 0)

  def evaluate(self) -> None:
    self.end(self.start('evaluate', self.folder), 0)

  def log_lines(self) -> int:
    """Returns the number of lines of metrics.jsonl."""
    path = self.folder / 'metrics.jsonl'
    if path.exists():
      return path.read_bytes().count(b'\n')
    return 0

  def steps(self) -> list[int]:
    """Returns the steps that have a checkpoint, in order."""
    names = [path.name for path in (self.folder / 'checkpoints').glob('[0-9]*')]
    return sorted(int(name) for name in names if name.isdigit())

  def wait_until(self, process: subprocess.Popen, reached: Callable[[], bool]) -> None:
    """Waits until `reached()`, or the process has ended."""
    began = time.monotonic()
    while process.poll() is None and not reached():
      if time.monotonic() - began > PATIENCE:
        process.kill()
        raise AssertionError('a command hangs')
      time.sleep(0.002)

  def wait_for_lines(self, process: subprocess.Popen, count: int) -> None:
    """Waits until metrics.jsonl has so many lines."""
    self.wait_until(process, lambda: self.log_lines() >= count)

  def kill(self, process: subprocess.Popen) -> int:
    """Kills a command, which may have ended by itself; returns its exit code."""
    process.kill()
    return self.end(process, -signal.SIGKILL, 0)


# Contents of a run


def arrays(folder: pathlib.Path) -> dict[str, np.ndarray]:
  """Returns {path: array} of a checkpoint."""
  import jax
  import orbax.checkpoint as ocp

  reader = ocp.PyTreeCheckpointer()
  trees = {}
  for item in ITEMS:
    if (folder / item).is_dir():
      # As numpy arrays: what several processes saved names devices that this one lacks.
      metadata = reader.metadata(folder / item).item_metadata.tree
      as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), metadata)
      arguments = ocp.args.PyTreeRestore(restore_args=as_numpy)
      trees[item] = reader.restore(folder / item, arguments)
  result = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(trees):
    result[jax.tree_util.keystr(path)] = np.asarray(leaf)
  return result


def contents(folder: pathlib.Path) -> dict:
  """Returns {name: value} of everything that must be equal."""
  result: dict = {}
  lines = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
  result['metrics.jsonl'] = [without_times(line) for line in lines]
  for path in (folder / 'checkpoints').iterdir():
    if path.name.isdigit():
      result[f'checkpoint {path.name}'] = arrays(path)
      result[f'meta of {path.name}'] = json.loads((path / 'meta' / 'metadata').read_text())
  for path in (folder / 'predictions').iterdir():
    result[f'predictions/{path.name}'] = path.read_bytes()
  for path in (folder / 'scores').iterdir():
    result[f'scores/{path.name}'] = without_times(json.loads(path.read_text()))
  return result


def without_times(values: dict) -> dict:
  return {key: value for key, value in values.items() if key not in TIMES}


def differing(actual: dict, expected: dict) -> list[str]:
  """Returns the names of what is not equal in two runs, bit for bit."""
  names = sorted(actual.keys() | expected.keys())
  result = []
  for name in names:
    is_in_both = name in actual and name in expected
    if not is_in_both or not equal(actual[name], expected[name]):
      result.append(name)
  return result


def equal(a: object, b: object) -> bool:
  if isinstance(a, dict) and isinstance(b, dict):
    return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
  if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
    return a.dtype == b.dtype and a.tobytes() == b.tobytes()
  return a == b


def leftovers(run: Run) -> list[str]:
  """Returns temporary files in the folder, and processes, which have ten seconds to end."""
  lock = run.folder / LOCK  # belongs to the folder
  result = []
  for path in run.folder.rglob('*'):
    is_temporary = path.name.startswith('.') or 'orbax-checkpoint-tmp' in path.name
    if is_temporary and path != lock:
      result.append(str(path))
  alive = run.place.processes()
  for _ in range(100):
    if not alive:
      break
    time.sleep(0.1)
    alive = run.place.processes()
  if is_locked(run.folder):
    result.append(f'{lock} is still locked')
  for number, command in alive.items():
    result.append(f'process {number}: {command[:100]}')
  return result


# Faults: each harms a run, and returns what it did


def kill_in_training(run: Run, rng: random.Random) -> str:
  process = run.start_training(rng.randint(0, 1))
  run.wait_for_lines(process, rng.randint(0, STEPS))
  time.sleep(rng.uniform(0, 0.3))
  run.kill(process)
  return f'after {run.log_lines()} lines, checkpoints {run.steps()}'


def kill_in_checkpointing(run: Run, rng: random.Random) -> str:
  """As soon as a name appears in the folder of checkpoints, or disappears."""
  process = run.start_training()
  folder = run.folder / 'checkpoints'
  changes = rng.randint(1, 3 * STEPS // EVERY)
  listings: list[list[str]] = [[]]

  def changed() -> bool:
    names = sorted(os.listdir(folder)) if folder.is_dir() else []
    if names != listings[-1]:
      listings.append(names)
    return len(listings) > changes

  run.wait_until(process, changed)
  time.sleep(rng.choice([0, rng.uniform(0, 0.05)]))
  run.kill(process)
  return f'beside {", ".join(listings[-1]) or "nothing"}'


def kill_in_evaluation(run: Run, rng: random.Random) -> str:
  run.train()
  process = run.start('evaluate', run.folder)
  seconds = rng.uniform(0, run.place.evaluation_seconds)
  began = time.monotonic()
  run.wait_until(process, lambda: time.monotonic() - began > seconds)
  run.kill(process)
  return f'after {seconds:.1f} s'


def preempted(run: Run, rng: random.Random) -> str:
  """SIGTERM to every process of the job, as a scheduler sends it."""
  process = run.start_training(rng.randint(0, 1))
  run.wait_for_lines(process, rng.randint(1, STEPS))
  os.killpg(process.pid, signal.SIGTERM)
  code = run.end(process, INTERRUPTED, 0)
  return f'exit code {code}, checkpoints {run.steps()}'


def kill_a_loader(run: Run, rng: random.Random) -> str:
  process = run.start_training(1)
  lines = rng.randint(1, STEPS // 2)

  def loaders() -> list[int]:
    processes = run.place.processes()
    return [number for number, command in processes.items() if 'spawn_main' in command]

  run.wait_until(process, lambda: run.log_lines() >= lines and bool(loaders()))
  for number in loaders():
    os.kill(number, signal.SIGKILL)
  code = run.end(process, 2, 0)
  if code and 'a loader process ended before its time' not in run.output:
    raise AssertionError(f'no message about the loader:\n{run.output[-2000:]}')
  return f'exit code {code} after {run.log_lines()} lines'


def damage(run: Run, rng: random.Random, harm: Callable[[pathlib.Path], str]) -> str:
  """Kills a training that has several checkpoints and harms a file of the newest."""
  process = run.start_training()
  run.wait_until(process, lambda: len(run.steps()) > 1)
  time.sleep(rng.uniform(0, 0.3))
  run.kill(process)
  step = run.folder / 'checkpoints' / str(run.steps()[-1])
  files = [path for path in step.rglob('*') if path.is_file() and path.stat().st_size]
  file = rng.choice(sorted(files))
  what = harm(file)
  run.train()
  has_checksum = len(file.relative_to(step).parts) > 1
  if has_checksum and f'Checkpoint {step.name} cannot be read' not in run.output:
    raise AssertionError(f'{file}: the damage was not detected:\n{run.output[-2000:]}')
  shutil.rmtree(step.with_name(f'damaged-{step.name}'), ignore_errors=True)
  return f'{file.relative_to(run.folder)}, {what}'


def truncated_file(run: Run, rng: random.Random) -> str:
  def harm(file: pathlib.Path) -> str:
    size = rng.randrange(file.stat().st_size)
    os.truncate(file, size)
    return f'cut to {size} bytes'

  return damage(run, rng, harm)


def flipped_byte(run: Run, rng: random.Random) -> str:
  def harm(file: pathlib.Path) -> str:
    data = bytearray(file.read_bytes())
    position = rng.randrange(len(data))
    data[position] ^= rng.randint(1, 255)
    file.write_bytes(data)
    return f'byte {position} changed'

  return damage(run, rng, harm)


def full_disk(run: Run, rng: random.Random) -> str:
  """The folder lies on a disk that is too small for the run, and then large enough."""
  if os.geteuid():
    raise NotRun('a small tmpfs needs root')
  files = [path for path in run.place.undisturbed.folder.rglob('*') if path.is_file()]
  needed = sum(path.stat().st_size for path in files)
  size = max(1 << 16, int(needed * rng.uniform(0.1, 0.9)))
  run.folder.mkdir()
  mount = ['mount', '-t', 'tmpfs', '-o', f'size={size}', 'tmpfs', str(run.folder)]
  if subprocess.run(mount, capture_output=True).returncode:
    raise NotRun('mounting a tmpfs is not allowed')
  try:
    code = run.end(run.start_training(), 2, 0)
    if code and 'no space left on the disk' not in run.output:
      raise AssertionError(f'no message about the disk:\n{run.output[-2000:]}')
    subprocess.run(['mount', '-o', 'remount,size=256m', run.folder], check=True)
    finish(run)
  finally:
    subprocess.run(['umount', '-l', run.folder])
  return f'{size >> 10} KiB, exit code {code}'


def kill_a_peer(run: Run, rng: random.Random) -> str:
  """Kills one of two processes; the other one must end by itself, and say why."""
  run.processes = 2
  lines = len(run.place.expected(2)['metrics.jsonl'])
  run.place.output.unlink()
  pair = run.start_together()
  victim = rng.randint(0, 1)
  run.wait_for_lines(pair[victim], rng.randint(0, STEPS))
  if run.kill(pair[victim]) == 0:
    run.end(pair[1 - victim], 0)
    return f'process {victim} had ended'
  code = run.end(pair[1 - victim], patience=LOST_PEER)
  if 'process' not in run.output.lower():
    raise AssertionError(f'no message about the lost process:\n{run.output[-2000:]}')
  return (
    f'process {victim} after {run.log_lines()} lines of {lines}, the other one ended with {code}'
  )


FAULTS: dict[str, Callable[[Run, random.Random], str]] = {
  'kill_in_training': kill_in_training,
  'kill_in_checkpointing': kill_in_checkpointing,
  'kill_in_evaluation': kill_in_evaluation,
  'preempted': preempted,
  'kill_a_loader': kill_a_loader,
  'truncated_file': truncated_file,
  'flipped_byte': flipped_byte,
  'full_disk': full_disk,
  'kill_a_peer': kill_a_peer,
}


def finish(run: Run) -> None:
  """Gives the same commands again, which must end with the contents of the undisturbed run."""
  run.train()
  run.evaluate()
  different = differing(contents(run.folder), run.place.expected(run.processes))
  if different:
    raise AssertionError(f'not as in the undisturbed run: {", ".join(different)}')
  remaining = leftovers(run)
  if remaining:
    raise AssertionError(f'left behind: {", ".join(remaining)}')


def one_round(place: Place, name: str, seed: int) -> tuple[str, str]:
  """Returns 'ok', 'failed' or 'not run', and what happened."""
  run = Run(place, place.folder / f'{name}-{seed}')
  try:
    what = FAULTS[name](run, random.Random(seed))
    if name != 'full_disk':  # which ends within its mount
      finish(run)
  except NotRun as reason:
    return 'not run', str(reason)
  except AssertionError as error:
    return 'failed', f'{error}\nfolder: {run.folder}'
  except Exception as error:
    return 'failed', f'{error}\n{traceback.format_exc()}folder: {run.folder}'
  shutil.rmtree(run.folder, ignore_errors=True)
  return 'ok', what


def parse_options(argv: list[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--rounds', type=int, default=50)
  parser.add_argument('--seed', type=int, default=0)
  all_names = ','.join(FAULTS)
  parser.add_argument('--only', default=all_names, help=f'some of {all_names}')
  parser.add_argument('--config', default=CONFIG, help='config with a smoke form (%(default)s)')
  options = parser.parse_args(argv)
  options.only = options.only.split(',')
  unknown = sorted(set(options.only) - set(FAULTS))
  if unknown:
    parser.error(f'--only: {", ".join(unknown)} is none of {all_names}')
  return options


def main(argv: list[str] | None = None) -> int:
  options = parse_options(argv)
  folder = pathlib.Path(tempfile.mkdtemp(prefix='mmlm-faults-'))
  counts = {'ok': 0, 'failed': 0, 'not run': 0}
  began = time.monotonic()
  place = Place(folder, options.config)
  print(f'undisturbed run: {time.monotonic() - began:.0f} s', flush=True)
  for number in range(options.rounds):
    began = time.monotonic()
    name = options.only[number % len(options.only)]
    result, what = one_round(place, name, options.seed + number)
    counts[result] += 1
    progress = f'round {number + 1:>3}/{options.rounds}'
    seconds = time.monotonic() - began
    print(f'{progress}  {name:<22} {result:<8} {seconds:4.0f} s  {what}', flush=True)
  print(', '.join(f'{count} {result}' for result, count in counts.items()))
  if counts['failed']:
    return 1
  shutil.rmtree(folder)
  return 0


if __name__ == '__main__':
  sys.exit(main())
