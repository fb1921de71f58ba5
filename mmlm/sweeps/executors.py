"""Where the runs of a sweep are trained: in processes here, in an array of Slurm's jobs, or together in this process."""

import contextlib
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import jax

from mmlm.config import ROOT
from mmlm.sweeps.listing import look
from mmlm.sweeps.study import Run, Sweep
from mmlm.sweeps.together import Trial, train_trials
from mmlm.training.loop import Interrupted, stop_signals
from mmlm.utils import run_dir as runs
from mmlm.utils.choices import one_of
from mmlm.utils.errors import UserError

POLL = 0.5  # seconds between looks
INTERRUPTED = 130  # the exit code of a training that a signal has stopped and that has saved


def arguments_of(run: Run, spec: str) -> list[str]:
  """`train` and what follows it."""
  return [
    'train',
    spec,
    '--workdir',
    str(run.folder),
    *(f'--config.{key}={value}' for key, value in run.settings.items()),
  ]


class Processes:
  """Each run is a process of its own."""

  at_once = 1  # where --jobs does not say it

  def __init__(self, sweep: Sweep, options: dict):
    self.sweep = sweep
    if options:
      raise UserError('--slurm is for --executor=slurm.')

  def start(self, found: list[Run]) -> list:
    return [self._start(run) for run in found]

  def _start(self, run: Run):
    """The process; None where one that an earlier sweep started is still at work."""
    try:
      file = runs.lock(run.folder)
    except runs.Busy:
      print(f'{run.name} is still being trained: waiting for it', flush=True)
      return None
    log = self.sweep.folder / 'logs' / f'{run.name}.txt'
    log.parent.mkdir(exist_ok=True)
    # The process takes over the lock: there is no moment at which another could start the same run.
    environment = os.environ | {
      'PYTHONPATH': os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')]),
      runs.INHERITED: str(file.fileno()),
    }
    with file, open(log, 'ab') as output:
      return subprocess.Popen(
        self.command(run),
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        pass_fds=[file.fileno()],
        start_new_session=True,  # Ctrl-C reaches the sweep, which asks them to save
      )

  def command(self, run: Run) -> list[str]:
    return [sys.executable, '-m', 'mmlm', *arguments_of(run, self.sweep.plan.spec)]

  def has_ended(self, run: Run, process) -> bool:
    if process:
      return process.poll() is not None
    return not runs.is_locked(run.folder)

  def error(self, run: Run, process) -> str | None:
    """Why a run that has ended is not complete; None where it should go on: it was asked to save and end, not by the sweep."""
    if process is None or process.returncode == INTERRUPTED:
      return None
    lines = (
      (self.sweep.folder / 'logs' / f'{run.name}.txt')
      .read_text(encoding='utf-8', errors='replace')
      .splitlines()
    )
    said = [line for line in lines if line.startswith('mmlm: ')] or lines[-1:]
    if said and process.returncode > 0:
      return said[-1].removeprefix('mmlm: ')
    return f'its process ended with {process.returncode}'

  def stop(self, process) -> None:
    """Asks a run to save and end."""
    if process:
      with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)

  def leave(self, processes: list) -> None:
    """Before the sweep ends early: all are asked to save, and waited for."""
    for process in processes:
      self.stop(process)
    for process in filter(None, processes):
      process.wait()


def _submitit():
  """submitit without its own set-up of logging, which closes the handlers that others have opened."""
  os.environ.setdefault('SUBMITIT_LOG_LEVEL', 'NOCONFIG')
  import submitit

  return submitit


def train_as_job(arguments: list[str]) -> None:
  """What a job of Slurm does."""
  subprocess.run([sys.executable, '-m', 'mmlm', *arguments], check=True)


class Slurm:
  """Each run is a job in an array, submitted by submitit; --jobs limits how many are submitted at once."""

  at_once = 0
  executor = 'SlurmExecutor'  # of submitit
  usual = {'job_name': 'mmlm', 'time': 24 * 60}  # minutes

  def __init__(self, sweep: Sweep, options: dict):
    if self.executor == 'SlurmExecutor' and not shutil.which('sbatch'):
      raise UserError(
        '--executor=slurm: there is no sbatch here. Start the sweep where Slurm takes jobs, or choose --executor=local.'
      )
    self.sweep = sweep
    self.folder = sweep.folder / 'jobs'
    self.executor = getattr(_submitit(), self.executor)(self.folder)
    known = self.executor._valid_parameters()
    for name, value in options.items():
      one_of('--slurm', name, known)
      if not value:
        raise UserError(
          f'--slurm={name}: write it as NAME=VALUE, for example partition=gpu,time=60,gpus_per_node=1.'
        )
    self.executor.update_parameters(
      **self.usual
      | {name: int(value) if value.isdigit() else value for name, value in options.items()}
    )

  def start(self, found: list[Run]) -> list:
    """The jobs of an array; one that an earlier sweep submitted and that is not over is waited for."""
    jobs = [self._submitted(run) for run in found]
    new = [arguments_of(run, self.sweep.plan.spec) for run, job in zip(found, jobs) if job is None]
    submitted = iter(self.executor.map_array(train_as_job, new) if new else [])
    jobs = [job or next(submitted) for job in jobs]
    for run, job in zip(found, jobs):
      runs.write_atomic(self._place(run), job.job_id)
    return jobs

  def _place(self, run: Run) -> pathlib.Path:
    return self.folder / f'{run.name}.id'

  def _submitted(self, run: Run):
    if not self._place(run).exists():
      return None
    job = self.executor.job_class(self.folder, self._place(run).read_text())
    return None if job.done() else job

  def has_ended(self, run: Run, job) -> bool:
    return job.done()

  def error(self, run: Run, job) -> str | None:
    try:
      said = (job.stderr() or '').splitlines()
    except OSError:
      said = []
    if any(f'exit status {INTERRUPTED}' in line for line in said):
      return None
    told = [line for line in said if 'mmlm: ' in line]
    if told:
      return told[-1].partition('mmlm: ')[2]
    return f'its job {job.job_id} ended as {job.state}'

  def stop(self, job) -> None:
    job.cancel()

  def leave(self, jobs: list) -> None:
    print(f'{len(jobs)} jobs stay submitted: the same command collects them.', flush=True)


def run_apart(backend, sweep: Sweep, jobs: int, options: dict) -> None:
  """Starts runs, `jobs` at once, tells the sweep when one has validated or ended, and starts the next."""
  backend = backend(sweep, options)
  at_once = jobs or backend.at_once
  working = {}
  with stop_signals() as stopped:
    while not stopped:
      free = at_once - len(working) if at_once else 0
      if free or not at_once:
        found = sweep.next_runs(free)
      else:
        found = []
      working |= dict(zip(found, backend.start(found)))
      if not working:
        return
      time.sleep(POLL)
      for run, job in list(working.items()):
        if backend.has_ended(run, job):
          del working[run]
          _ended(backend, sweep, run, job)
        elif not run.trial.pruned and sweep.should_stop(run):
          for other, its in working.items():
            if other.trial is run.trial:
              backend.stop(its)
    backend.leave(list(working.values()))
  raise Interrupted('Interrupted. The same command goes on with the sweep.', stopped)


def _ended(backend, sweep: Sweep, run: Run, job) -> None:
  found = look(run.folder)
  if run.trial.pruned and found.state != 'done':
    runs.write_status(run.folder, 'pruned', found.total, 'others are better')
    sweep.ended(run)
  elif found.complete:
    sweep.ended(run)
  elif (error := backend.error(run, job)) is None:
    sweep.again(run)
  else:
    sweep.ended(run, error)


def run_together(sweep: Sweep, jobs: int, options: dict) -> None:
  """Trains the runs whose shapes agree in one program, at most `jobs` at once (0 = all that there are)."""
  if options:
    raise UserError('--slurm is for --executor=slurm.')
  while found := sweep.next_runs(jobs):
    by_folder = {run.folder: run for run in found}
    trials = [Trial(sweep.plan.config_of(run.settings), run.folder) for run in found]
    try:
      train_trials(trials, lambda trial, step, scores: sweep.should_stop(by_folder[trial.folder]))  # noqa: B023 called at once
    except jax.errors.JaxRuntimeError as error:
      if 'RESOURCE_EXHAUSTED' not in str(error):
        raise
      raise UserError(
        f'{len(trials)} trials at once do not fit into memory: --jobs={max(1, len(trials) // 2)} trains half as many together. '
        'The same command goes on.'
      ) from None
    for run in found:
      sweep.ended(run)


EXECUTORS = {
  'local': lambda *arguments: run_apart(Processes, *arguments),
  'slurm': lambda *arguments: run_apart(Slurm, *arguments),
  'vectorised': run_together,
}
