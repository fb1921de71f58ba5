"""Where the runs of a sweep are trained: in local processes, as jobs of Slurm, or vectorised.

`EXECUTORS` maps the names of the flag --executor to functions (sweep, jobs, options of Slurm).
"""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn, Protocol

import jax

from mmlm.config import ROOT
from mmlm.sweeps.listing import summarize_run
from mmlm.sweeps.slurm_jobs import array_executor
from mmlm.sweeps.study import Run, Sweep
from mmlm.sweeps.together import train_trials
from mmlm.sweeps.trial_runs import Scores, Trial
from mmlm.training.loop import SIGINT_CODE, Interrupted, stop_signals
from mmlm.utils import run_dir
from mmlm.utils.errors import UserError

POLL_SECONDS = 0.5
Options = dict[str, str]
Jobs = dict[Run, Any]  # {run: what its backend returned for it}
MESSAGE = 'mmlm: '  # begins the message of a command that failed


class Backend(Protocol):
  """Starts runs apart from this process. A job is whatever `start` returns for a run."""

  at_once: int  # runs at once, where --jobs does not say it; 0 = all

  def start(self, runs: list[Run]) -> list[Any]:
    """Returns a job for each run; one that an earlier sweep started is taken over."""
    ...

  def has_ended(self, run: Run, job: Any) -> bool: ...

  def error(self, run: Run, job: Any) -> str | None:
    """Returns why an ended run is not complete; None if it was only asked to save and end."""
    ...

  def stop(self, job: Any) -> None:
    """Asks a run to save and end."""
    ...

  def leave(self, jobs: list[Any]) -> None:
    """Called before the sweep ends early."""
    ...


def arguments_of(run: Run, spec: str) -> list[str]:
  """Returns `train` and its arguments."""
  settings = [f'--config.{key}={value}' for key, value in run.settings.items()]
  return ['train', spec, '--workdir', str(run.folder), *settings]


Process = subprocess.Popen | None


class Processes:
  """Backend of local processes, one a run."""

  at_once = 1

  def __init__(self, sweep: Sweep):
    self.sweep = sweep

  def start(self, runs: list[Run]) -> list[Process]:
    return list(map(self._start, runs))

  def _start(self, run: Run) -> Process:
    """Returns the process; None where one that an earlier sweep started still works."""
    try:
      lock = run_dir.lock(run.folder)
    except run_dir.Busy:
      print(f'{run.name} is still being trained: waiting for it', flush=True)
      return None
    log = self._log_of(run)
    log.parent.mkdir(exist_ok=True)
    # The process inherits the lock, so that nothing else can start the same run in between.
    path = [str(ROOT), os.environ.get('PYTHONPATH', '')]
    environment = dict(os.environ)
    environment['PYTHONPATH'] = os.pathsep.join(path)
    environment[run_dir.INHERITED] = str(lock.fileno())
    with lock, open(log, 'ab') as output:
      return subprocess.Popen(
        self.command(run),
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        pass_fds=[lock.fileno()],
        start_new_session=True,  # Ctrl-C reaches the sweep, which asks them to save
      )

  def command(self, run: Run) -> list[str]:
    return [sys.executable, '-m', 'mmlm', *arguments_of(run, self.sweep.plan.spec)]

  def _log_of(self, run: Run) -> pathlib.Path:
    return self.sweep.folder / 'logs' / f'{run.name}.txt'

  def has_ended(self, run: Run, job: Process) -> bool:
    if job is None:
      return not run_dir.is_locked(run.folder)
    return job.poll() is not None

  def error(self, run: Run, job: Process) -> str | None:
    if job is None or job.returncode == SIGINT_CODE:
      return None
    log = self._log_of(run).read_text(encoding='utf-8', errors='replace')
    lines = log.splitlines()
    messages = [line for line in lines if line.startswith(MESSAGE)]
    last = (messages or lines)[-1:]
    if last and job.returncode > 0:
      return last[0].removeprefix(MESSAGE)
    return f'its process ended with {job.returncode}'

  def stop(self, job: Process) -> None:
    if job is not None:
      with contextlib.suppress(ProcessLookupError):
        job.send_signal(signal.SIGTERM)

  def leave(self, jobs: list[Process]) -> None:
    """Asks all to save and end, and waits for them."""
    for job in jobs:
      self.stop(job)
    for job in jobs:
      if job is not None:
        job.wait()


def train_as_job(arguments: list[str]) -> None:
  """Trains one run; a job of Slurm calls it."""
  subprocess.run([sys.executable, '-m', 'mmlm', *arguments], check=True)


class SlurmArray:
  """Backend of an array of jobs, submitted by submitit (`executor`)."""

  at_once = 0

  def __init__(self, sweep: Sweep, folder: pathlib.Path, executor: Any):
    self.sweep = sweep
    self.folder = folder
    self.executor = executor

  def start(self, runs: list[Run]) -> list[Any]:
    jobs = {}
    new = {}
    for run in runs:
      jobs[run] = self._submitted_earlier(run)
      if jobs[run] is None:
        new[run] = arguments_of(run, self.sweep.plan.spec)
    if new:
      submitted = self.executor.map_array(train_as_job, list(new.values()))
      jobs |= dict(zip(new, submitted))
    for run, job in jobs.items():
      run_dir.write_atomic(self._id_file(run), job.job_id)
    return list(jobs.values())

  def _id_file(self, run: Run) -> pathlib.Path:
    return self.folder / f'{run.name}.id'

  def _submitted_earlier(self, run: Run) -> Any:
    """Returns the job that an earlier sweep submitted for a run, if it has not ended."""
    file = self._id_file(run)
    if not file.exists():
      return None
    job = self.executor.job_class(self.folder, file.read_text())
    return None if job.done() else job

  def has_ended(self, run: Run, job: Any) -> bool:
    return job.done()

  def error(self, run: Run, job: Any) -> str | None:
    try:
      log = job.stderr() or ''
    except OSError:
      log = ''
    if f'exit status {SIGINT_CODE}' in log:
      return None
    _, separator, last = log.rpartition(MESSAGE)
    if separator:
      return last.partition('\n')[0]
    return f'its job {job.job_id} ended as {job.state}'

  def stop(self, job: Any) -> None:
    job.cancel()

  def leave(self, jobs: list[Any]) -> None:
    print(f'{len(jobs)} jobs stay submitted: the same command collects them.', flush=True)


def run_apart(backend: Backend, sweep: Sweep, jobs: int) -> None:
  """Trains the runs of a sweep by a backend, at most `jobs` at once (0 = the backend's default).

  Raises:
    Interrupted: after a signal; the same command resumes the sweep.
  """
  at_once = jobs or backend.at_once
  working: Jobs = {}
  with stop_signals() as stopped:
    while not stopped:
      working |= _start_more(backend, sweep, at_once, len(working))
      if not working:
        return
      time.sleep(POLL_SECONDS)
      for run, job in list(working.items()):
        if backend.has_ended(run, job):
          del working[run]
          _note_end(backend, sweep, run, job)
        elif not run.trial.pruned and sweep.should_stop(run):
          _stop_trial(backend, run, working)
    backend.leave(list(working.values()))
  raise Interrupted('Interrupted. The same command resumes the sweep.', stopped)


def _start_more(backend: Backend, sweep: Sweep, at_once: int, working: int) -> Jobs:
  """Starts as many runs as there is room for."""
  if at_once and working >= at_once:
    return {}
  runs = sweep.next_runs(at_once - working if at_once else 0)
  return dict(zip(runs, backend.start(runs)))


def _stop_trial(backend: Backend, run: Run, working: Jobs) -> None:
  """Stops all runs of the trial of a run."""
  for other, job in working.items():
    if other.trial is run.trial:
      backend.stop(job)


def _note_end(backend: Backend, sweep: Sweep, run: Run, job: Any) -> None:
  """Tells the sweep that a run is complete, failed, or to be trained further."""
  summary = summarize_run(run.folder)
  if run.trial.pruned and summary.state != 'done':
    run_dir.write_status(run.folder, 'pruned', summary.total, 'others are better')
    sweep.ended(run)
    return
  if summary.complete:
    sweep.ended(run)
    return
  error = backend.error(run, job)
  if error is None:
    sweep.again(run)
  else:
    sweep.ended(run, error)


def train_locally(sweep: Sweep, jobs: int, slurm_options: Options) -> None:
  """Trains each run in a process of its own, one after the other without `jobs`."""
  _refuse(slurm_options)
  run_apart(Processes(sweep), sweep, jobs)


def train_by_slurm(sweep: Sweep, jobs: int, slurm_options: Options) -> None:
  """Trains each run as a job of Slurm; `jobs` limits how many are submitted at once."""
  folder = sweep.folder / 'jobs'
  executor = array_executor(folder, slurm_options)
  run_apart(SlurmArray(sweep, folder, executor), sweep, jobs)


def train_vectorised(sweep: Sweep, jobs: int, slurm_options: Options) -> None:
  """Trains the runs of one shape in one program, at most `jobs` at once (0 = all)."""
  _refuse(slurm_options)
  while runs := sweep.next_runs(jobs):
    _train_together(sweep, runs)
    for run in runs:
      sweep.ended(run)


def _train_together(sweep: Sweep, runs: list[Run]) -> None:
  trials = []
  run_of_folder = {}
  for run in runs:
    config = sweep.plan.config_of(run.settings)
    trials.append(Trial(config, run.folder))
    run_of_folder[run.folder] = run

  def should_stop(trial: Trial, step: int, scores: Scores) -> bool:
    return sweep.should_stop(run_of_folder[trial.folder])

  try:
    train_trials(trials, should_stop)
  except jax.errors.JaxRuntimeError as error:
    _explain_memory(error, len(trials))


def _refuse(slurm_options: Options) -> None:
  if slurm_options:
    raise UserError('--slurm is for --executor=slurm.')


def _explain_memory(error: Exception, trials: int) -> NoReturn:
  """Raises the error again, as a UserError where the memory of the device is full."""
  if 'RESOURCE_EXHAUSTED' not in str(error):
    raise error
  fewer = max(1, trials // 2)
  raise UserError(
    f'{trials} trials at once do not fit into memory: --jobs={fewer} trains fewer together. '
    'The same command resumes the sweep.'
  ) from None


Executor = Callable[[Sweep, int, Options], None]
EXECUTORS: dict[str, Executor] = {
  'local': train_locally,
  'slurm': train_by_slurm,
  'vectorised': train_vectorised,
}
