"""Whatever stops a run, nothing is lost: random faults, after each of which the same commands end with the bits of a run that had none.

  python -m tests.faults [--rounds 50] [--seed 0] [--only kill_in_training,flipped_byte] [--config CONFIG]

Each round trains a small form of a config in a fresh folder, harms it in one way (FAULTS), gives the same commands again, and compares
every array of every checkpoint, metrics.jsonl but for its times, predictions and scores with those of an undisturbed run. No process and
no temporary file may be left. A round that cannot be run here (a full disk needs a small tmpfs, so root) is counted as such.
The exit code is 1 if a round failed; its folder is kept.
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

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from mmlm.utils.run_dir import LOCK, is_locked  # noqa: E402

CONFIG = 'configs/sentiment/generated.py:smoke,modalities=text'
STEPS = 12
EVERY = 2
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
LOST = 240  # that a process may take to see that another is gone
MARK = 'MMLM_FAULTS'  # in the environment of every process of this test


class NotRun(Exception):
  """Why a fault cannot be made on this machine."""


class Place:
  """Where it happens: prepared data, compiled programs, and the undisturbed run."""

  def __init__(self, folder: pathlib.Path, config: str):
    self.folder = folder
    self.config = config
    self.mark = uuid.uuid4().hex
    cache = {
      'JAX_COMPILATION_CACHE_DIR': str(folder / 'cache'),
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    }
    cpu = {'JAX_PLATFORMS': os.environ.get('JAX_PLATFORMS', 'cpu')}
    self.environment = (
      os.environ | {MARK: self.mark, 'PYTHONPATH': str(ROOT), 'PYTHONUNBUFFERED': '1'} | cache | cpu
    )
    self._wanted = {}
    self.whole = self.undisturbed(1)

  def undisturbed(self, processes: int) -> 'Run':
    """Trains and evaluates as so many processes; `wanted` then knows it."""
    run = Run(self, self.folder / f'whole-{processes}', processes)
    run.train()
    began = time.monotonic()
    run.evaluate()
    self.evaluation_seconds = time.monotonic() - began
    self._wanted[processes] = contents(run.folder)
    return run

  def wanted(self, processes: int) -> dict:
    """What a run must hold: sums over two devices have other bits than those of one."""
    if processes not in self._wanted:
      self.undisturbed(processes)
    return self._wanted[processes]

  def processes(self) -> dict[int, str]:
    """{number: command line} of all that live and bear the mark."""
    found = {}
    for entry in pathlib.Path('/proc').glob('[0-9]*'):
      try:
        if (
          f'{MARK}={self.mark}'.encode() in (entry / 'environ').read_bytes()
          and (entry / 'stat').read_text().rpartition(')')[2].split()[0] != 'Z'
        ):
          found[int(entry.name)] = (entry / 'cmdline').read_bytes().replace(b'\0', b' ').decode()
      except OSError:  # it has ended, or belongs to another user
        continue
    return found


class Run:
  """A run folder and the two commands that make it complete; `processes` that train it together, of one device each."""

  def __init__(self, place: Place, folder: pathlib.Path, processes: int = 1):
    self.place = place
    self.folder = folder
    self.processes = processes
    self.said = ''

  def start(self, *argv, workers: int = 0) -> subprocess.Popen:
    settings = SETTINGS | {'data.dir': self.place.folder / 'data', 'data.workers': workers}
    settings |= {} if self.processes == 1 else {'parallel.strategy': 'mesh'}
    if argv[0] == 'train':
      words = [f'--config.{key}={value}' for key, value in settings.items()]
    else:
      words = []
    with open(self.place.folder / 'said', 'ab' if self.processes > 1 else 'wb') as out:
      return subprocess.Popen(
        [sys.executable, '-m', 'mmlm', *map(str, argv), *words],
        cwd=ROOT,
        env=self.place.environment,
        stdout=out,
        stderr=subprocess.STDOUT,
        start_new_session=True,
      )

  def start_training(self, workers: int = 0) -> subprocess.Popen:
    return self.start('train', self.place.config, '--workdir', self.folder, workers=workers)

  def start_together(self) -> list[subprocess.Popen]:
    """All processes of the training; what they say lies in one file."""
    with socket.socket() as free:
      free.bind(('127.0.0.1', 0))
      meeting = f'--coordinator=127.0.0.1:{free.getsockname()[1]}', f'--processes={self.processes}'
    train = 'train', self.place.config, '--workdir', self.folder, *meeting
    result = []
    for i in range(self.processes):
      result.append(self.start(*train, f'--process={i}', '--config.parallel.mesh=data=-1'))
    return result

  def end(self, process: subprocess.Popen, *allowed: int, patience: float = PATIENCE) -> int:
    """Waits for a command, which must end with one of the codes (of none: with any but 0); returns it."""
    try:
      code = process.wait(patience)
    except subprocess.TimeoutExpired:
      process.kill()
      raise AssertionError(f'a command hangs: {process.args}') from None
    self.said = (self.place.folder / 'said').read_text(errors='replace')
    if code not in allowed if allowed else code == 0:
      raise AssertionError(f'exit code {code}, not {allowed or "another"}:\n{self.said[-3000:]}')
    return code

  def train(self):
    for process in [self.start_training()] if self.processes == 1 else self.start_together():
      self.end(process, 0)

  def evaluate(self):
    self.end(self.start('evaluate', self.folder), 0)

  def lines(self) -> int:
    path = self.folder / 'metrics.jsonl'
    if path.exists():
      return path.read_bytes().count(b'\n')
    return 0

  def steps(self) -> list[int]:
    return sorted(
      int(p.name) for p in (self.folder / 'checkpoints').glob('[0-9]*') if p.name.isdigit()
    )

  def until(self, process: subprocess.Popen, reached) -> None:
    """Waits until `reached()`, or the process has ended."""
    began = time.monotonic()
    while process.poll() is None and not reached():
      if time.monotonic() - began > PATIENCE:
        process.kill()
        raise AssertionError('a command hangs')
      time.sleep(0.002)


# What a run holds


def arrays(folder: pathlib.Path) -> dict:
  """{name: array} of a checkpoint."""
  import jax
  import orbax.checkpoint as ocp

  items = [item for item in ('params', 'ema', 'rest') if (folder / item).is_dir()]
  trees = {}
  reader = ocp.PyTreeCheckpointer()
  for item in items:  # as numpy's: what several processes saved names devices that this one lacks
    plain = jax.tree.map(
      lambda _: ocp.RestoreArgs(restore_type=np.ndarray),
      reader.metadata(folder / item).item_metadata.tree,
    )
    trees[item] = reader.restore(folder / item, ocp.args.PyTreeRestore(restore_args=plain))
  result = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(trees):
    result[jax.tree_util.keystr(path)] = np.asarray(leaf)
  return result


def contents(folder: pathlib.Path) -> dict:
  """{what: value} of everything that must be the same."""
  rows = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
  found = {
    'metrics.jsonl': [
      {key: value for key, value in row.items() if key not in TIMES} for row in rows
    ]
  }
  steps = sorted(int(p.name) for p in (folder / 'checkpoints').iterdir() if p.name.isdigit())
  for step in steps:
    found[f'checkpoint {step}'] = arrays(folder / 'checkpoints' / str(step))
    found[f'meta of {step}'] = json.loads(
      (folder / 'checkpoints' / str(step) / 'meta' / 'metadata').read_text()
    )
  found |= {f'predictions/{p.name}': p.read_bytes() for p in (folder / 'predictions').iterdir()}
  scores = {f'scores/{p.name}': json.loads(p.read_text()) for p in (folder / 'scores').iterdir()}
  return found | {
    name: {key: value for key, value in score.items() if key not in TIMES}
    for name, score in scores.items()
  }


def differing(got: dict, wanted: dict) -> list[str]:
  """Names of what two runs do not have in common, bit for bit."""

  def same(a, b):
    if isinstance(a, dict) and isinstance(b, dict):
      return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, np.ndarray):
      return a.dtype == b.dtype and a.tobytes() == b.tobytes()
    return a == b

  result = []
  for name in sorted(got.keys() | wanted.keys()):
    if name not in got or name not in wanted or not same(got[name], wanted[name]):
      result.append(name)
  return result


def left_behind(run: Run) -> list[str]:
  """Temporary files in the folder, and processes, which have a moment to end. The lock of a run belongs to its folder."""
  own = run.folder / LOCK
  files = []
  for p in run.folder.rglob('*'):
    if p.name.startswith('.') and p != own or 'orbax-checkpoint-tmp' in p.name:
      files.append(str(p))
  for _ in range(100):
    if not (alive := run.place.processes()):
      break
    time.sleep(0.1)
  files += [f'{own} is still locked'] if is_locked(run.folder) else []
  return files + [f'process {number}: {line[:100]}' for number, line in alive.items()]


# Faults: each does its harm, and says what it did


def kill_in_training(run: Run, rng: random.Random) -> str:
  process = run.start_training(rng.randint(0, 1))
  lines = rng.randint(0, STEPS)
  run.until(process, lambda: run.lines() >= lines)
  time.sleep(rng.uniform(0, 0.3))
  process.kill()
  run.end(process, -signal.SIGKILL, 0)
  return f'after {run.lines()} lines, checkpoints {run.steps()}'


def kill_in_checkpointing(run: Run, rng: random.Random) -> str:
  """As soon as a name appears, or goes, in the folder of checkpoints."""
  process = run.start_training()
  place = run.folder / 'checkpoints'
  seen = []
  changes = rng.randint(1, 3 * STEPS // EVERY)

  def changed():
    if place.is_dir():
      names = sorted(os.listdir(place))
    else:
      names = []
    if names != (seen[-1] if seen else []):
      seen.append(names)
    return len(seen) >= changes

  run.until(process, changed)
  time.sleep(rng.choice([0, rng.uniform(0, 0.05)]))
  process.kill()
  run.end(process, -signal.SIGKILL, 0)
  return f'beside {", ".join(seen[-1]) if seen else "nothing"}'


def kill_in_evaluation(run: Run, rng: random.Random) -> str:
  run.train()
  process = run.start('evaluate', run.folder)
  seconds = rng.uniform(0, run.place.evaluation_seconds)
  began = time.monotonic()
  run.until(process, lambda: time.monotonic() - began > seconds)
  process.kill()
  run.end(process, -signal.SIGKILL, 0)
  return f'after {seconds:.1f} s'


def preempted(run: Run, rng: random.Random) -> str:
  """SIGTERM to every process of the job, as a scheduler sends it."""
  process = run.start_training(rng.randint(0, 1))
  lines = rng.randint(1, STEPS)
  run.until(process, lambda: run.lines() >= lines)
  os.killpg(process.pid, signal.SIGTERM)
  code = run.end(process, 75, 0)
  return f'exit code {code}, checkpoints {run.steps()}'


def kill_a_loader(run: Run, rng: random.Random) -> str:
  process = run.start_training(1)
  lines = rng.randint(1, STEPS // 2)

  def loaders():
    return [number for number, line in run.place.processes().items() if 'spawn_main' in line]

  run.until(process, lambda: run.lines() >= lines and loaders())
  for number in loaders():
    os.kill(number, signal.SIGKILL)
  code = run.end(process, 2, 0)
  if code and 'a loader process ended before its time' not in run.said:
    raise AssertionError(f'no word of the loader:\n{run.said[-2000:]}')
  return f'exit code {code} after {run.lines()} lines'


def _damaged(run: Run, rng: random.Random, harm) -> str:
  """Kills a training that has several checkpoints and harms a file of the newest."""
  process = run.start_training()
  run.until(process, lambda: len(run.steps()) > 1)
  time.sleep(rng.uniform(0, 0.3))
  process.kill()
  run.end(process, -signal.SIGKILL, 0)
  step = run.folder / 'checkpoints' / str(run.steps()[-1])
  file = rng.choice(sorted(p for p in step.rglob('*') if p.is_file() and p.stat().st_size))
  told = harm(file)
  run.train()
  checked = len(file.relative_to(step).parts) > 1
  if checked and f'Checkpoint {step.name} cannot be read' not in run.said:
    raise AssertionError(f'{file}: the damage was not seen:\n{run.said[-2000:]}')
  if (aside := step.with_name(f'damaged-{step.name}')).exists():
    shutil.rmtree(aside)
  return f'{file.relative_to(run.folder)}, {told}'


def truncated_file(run: Run, rng: random.Random) -> str:
  def harm(file):
    size = rng.randrange(file.stat().st_size)
    os.truncate(file, size)
    return f'{size} bytes left'

  return _damaged(run, rng, harm)


def flipped_byte(run: Run, rng: random.Random) -> str:
  def harm(file):
    data = bytearray(file.read_bytes())
    place = rng.randrange(len(data))
    bits = rng.randint(1, 255)
    data[place] ^= bits
    file.write_bytes(data)
    return f'byte {place} changed'

  return _damaged(run, rng, harm)


def full_disk(run: Run, rng: random.Random) -> str:
  """The folder lies on a disk that is too small for the run, and then large enough."""
  if os.geteuid():
    raise NotRun('a small tmpfs needs root')
  used = sum(p.stat().st_size for p in run.place.whole.folder.rglob('*') if p.is_file())
  size = max(1 << 16, int(used * rng.uniform(0.1, 0.9)))
  run.folder.mkdir()
  if subprocess.run(
    ['mount', '-t', 'tmpfs', '-o', f'size={size}', 'tmpfs', run.folder], capture_output=True
  ).returncode:
    raise NotRun('mounting a tmpfs is not allowed')
  try:
    code = run.end(run.start_training(), 2, 0)
    if code and 'no space left on the disk' not in run.said:
      raise AssertionError(f'no word of the disk:\n{run.said[-2000:]}')
    subprocess.run(['mount', '-o', 'remount,size=256m', run.folder], check=True)
    finish(run)
  finally:
    subprocess.run(['umount', '-l', run.folder])
  return f'{size >> 10} KiB, exit code {code}'


def kill_a_peer(run: Run, rng: random.Random) -> str:
  """One of two processes; the other must end by itself, and say why."""
  run.processes = 2
  wanted = run.place.wanted(2)
  (run.place.folder / 'said').unlink()
  pair = run.start_together()
  victim = rng.randint(0, 1)
  lines = rng.randint(0, STEPS)
  run.until(pair[victim], lambda: run.lines() >= lines)
  pair[victim].kill()
  killed = run.end(pair[victim], -signal.SIGKILL, 0)
  if not killed:
    run.end(pair[1 - victim], 0)
    return f'process {victim} was through'
  code = run.end(pair[1 - victim], patience=LOST)
  if 'process' not in run.said.lower():
    raise AssertionError(f'no word of the lost process:\n{run.said[-2000:]}')
  return f'process {victim} after {run.lines()} lines of {len(wanted["metrics.jsonl"])}, the other ended with {code}'


FAULTS = {
  fault.__name__: fault
  for fault in (
    kill_in_training,
    kill_in_checkpointing,
    kill_in_evaluation,
    preempted,
    kill_a_loader,
    truncated_file,
    flipped_byte,
    full_disk,
    kill_a_peer,
  )
}


def finish(run: Run):
  """The same commands again, which must end well and leave what the undisturbed run has."""
  run.train()
  run.evaluate()
  if found := differing(contents(run.folder), run.place.wanted(run.processes)):
    raise AssertionError(f'not as in the undisturbed run: {", ".join(found)}')
  if found := left_behind(run):
    raise AssertionError(f'left behind: {", ".join(found)}')


def one_round(place: Place, name: str, seed: int) -> tuple[str, str]:
  """('ok', 'failed' or 'not run', what happened)."""
  run = Run(place, place.folder / f'{name}-{seed}')
  rng = random.Random(seed)
  try:
    told = FAULTS[name](run, rng)
    if run.folder.exists() and any(run.folder.iterdir()) or name != 'full_disk':
      finish(run)
  except NotRun as reason:
    return 'not run', str(reason)
  except Exception as error:
    return (
      'failed',
      f'{error}\n{"" if isinstance(error, AssertionError) else traceback.format_exc()}folder: {run.folder}',
    )
  shutil.rmtree(run.folder, ignore_errors=True)
  return 'ok', told


def main(argv=None) -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--rounds', type=int, default=50)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument(
    '--only', default=','.join(FAULTS), help=f'some of {", ".join(FAULTS)}, with commas'
  )
  parser.add_argument(
    '--config', default=CONFIG, help=f'any config with a smoke form (default {CONFIG})'
  )
  options = parser.parse_args(argv)
  names = options.only.split(',')
  if unknown := set(names) - set(FAULTS):
    parser.error(f'--only: {", ".join(sorted(unknown))} is none of {", ".join(FAULTS)}')
  folder = pathlib.Path(tempfile.mkdtemp(prefix='mmlm-faults-'))
  counts = {'ok': 0, 'failed': 0, 'not run': 0}
  began = time.monotonic()
  place = Place(folder, options.config)
  print(f'undisturbed run: {time.monotonic() - began:.0f} s', flush=True)
  for number in range(options.rounds):
    began = time.monotonic()
    name = names[number % len(names)]
    result, told = one_round(place, name, options.seed + number)
    counts[result] += 1
    print(
      f'round {number + 1:>3}/{options.rounds}  {name:<22} {result:<8} {time.monotonic() - began:4.0f} s  {told}',
      flush=True,
    )
  print(', '.join(f'{count} {result}' for result, count in counts.items()))
  if not counts['failed']:
    shutil.rmtree(folder)
  return 1 if counts['failed'] else 0


if __name__ == '__main__':
  sys.exit(main())
