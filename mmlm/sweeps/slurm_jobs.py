"""Jobs of Slurm: one training as an sbatch script, and many runs as an array of jobs.

A script can be read and changed; it is written once, and submitted as it is when it exists.
"""

import os
import pathlib
import shlex
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

from mmlm.config import ROOT
from mmlm.training.loop import PREEMPTED, SIGINT_CODE
from mmlm.utils import run_dir
from mmlm.utils.choices import one_of
from mmlm.utils.errors import UserError

if TYPE_CHECKING:
  import submitit

TERMINATED = 143  # exit code of a process that SIGTERM has ended
GO_ON = (PREEMPTED, SIGINT_CODE, TERMINATED)  # exit codes of a training that should be resumed
DEFAULT_PARAMETERS = {'job_name': 'mmlm', 'time': 24 * 60}  # minutes
SCRIPT = """#!/usr/bin/env bash
# Written by `{command}`.
# Change it as you like, and submit it with `sbatch {path}` or with the same command.
#SBATCH --job-name={name}
#SBATCH --output={folder}-%j.log
#SBATCH --open-mode=append
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --signal=TERM@120
{options}
# One process on each node uses all of its devices; several processes find each other.
# Two minutes before the time limit, or when the job is preempted, training saves its state and
# ends with an exit code of its own; the job is then requeued and resumes the run.
cd {here}
export PYTHONPATH={root}
code=0
srun --kill-on-bad-exit=1 {python} -m mmlm {arguments} || code=$?
case $code in
  {go_on}) scontrol requeue "$SLURM_JOB_ID" ;;
esac
exit $code
"""


def has_slurm() -> bool:
  """Returns whether jobs can be submitted from this machine."""
  return shutil.which('sbatch') is not None


def submit_training(words: list[str], workdir: str, options: list[str]) -> None:
  """Submits `mmlm train ...` as a job, by a script beside its run folder (runs/x.sbatch).

  Args:
    words: the command, 'train' and its arguments.
    options: of sbatch, such as '--nodes=2'.

  Raises:
    UserError: there is no Slurm, or sbatch fails.
  """
  folder = pathlib.Path(workdir).absolute()
  path = folder.with_name(f'{folder.name}.sbatch')
  if not path.exists():
    run_dir.write_atomic(path, batch_script(words, folder, path, options))
  print(f'{path}: the script of the job, which you can change.')
  if not has_slurm():
    raise UserError(f'there is no sbatch on this machine. Submit {path} where there is.')
  result = subprocess.run(['sbatch', str(path)], capture_output=True, text=True)
  if result.returncode:
    raise UserError(f'sbatch {path}: {result.stderr.strip() or result.stdout.strip()}')
  print(f'{result.stdout.strip()}; it writes {folder}-NUMBER.log')


def batch_script(
  words: list[str], folder: pathlib.Path, path: pathlib.Path, options: list[str]
) -> str:
  """Returns the text of a script; relative paths in `words` mean those of this folder."""
  for option in options:
    if not option.startswith('-'):
      raise UserError(
        f"SLURM_OPTIONS: {option!r} is no option of sbatch; write each as one word, '--nodes=2'."
      )
  return SCRIPT.format(
    command=f'LAUNCHER=slurm ./launch.sh {shlex.join(words)}',
    path=path,
    name=folder.name,
    folder=folder,
    here=shlex.quote(os.getcwd()),
    root=shlex.quote(str(ROOT)),
    options=''.join(f'#SBATCH {option}\n' for option in options),
    python=shlex.quote(sys.executable),
    arguments=shlex.join(words),
    go_on=' | '.join(map(str, GO_ON)),
  )


def array_executor(folder: pathlib.Path, options: dict[str, str]) -> 'submitit.Executor':
  """Returns submitit's executor of an array of jobs.

  Args:
    folder: of its logs and of the pickled functions.
    options: parameters of the jobs, such as {'partition': 'gpu', 'time': '60'}.

  Raises:
    UserError: there is no Slurm, or an option that submitit does not have.
  """
  if not has_slurm():
    raise UserError(
      '--executor=slurm: there is no sbatch here. Start the sweep where Slurm takes jobs, '
      'or choose --executor=local.'
    )
  executor = import_submitit().SlurmExecutor(folder)
  parameters = dict(DEFAULT_PARAMETERS)
  for name, value in options.items():
    one_of('--slurm', name, executor._valid_parameters())
    if not value:
      raise UserError(
        f'--slurm={name}: write it as NAME=VALUE, '
        'for example partition=gpu,time=60,gpus_per_node=1.'
      )
    parameters[name] = int(value) if value.isdigit() else value
  executor.update_parameters(**parameters)
  return executor


def import_submitit():
  """Imports submitit without its configuration of logging, which closes handlers of others."""
  os.environ.setdefault('SUBMITIT_LOG_LEVEL', 'NOCONFIG')
  import submitit

  return submitit
