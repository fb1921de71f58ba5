"""`LAUNCHER=slurm ./launch.sh train ...`: the same command as a job of Slurm, in a file that a person can read and change.

The file stands beside the run folder, runs/x.sbatch for runs/x, and is written once: where it is there already it is submitted as it is.
`SLURM_OPTIONS='--nodes=2 --gpus-per-node=8 --partition=gpu'` gives options of sbatch, one line each in the file.
"""

import os
import pathlib
import shlex
import shutil
import subprocess
import sys

from mmlm.cli.command_line import parse
from mmlm.cli.flags import Train
from mmlm.config import ROOT
from mmlm.utils import run_dir as runs
from mmlm.utils.errors import UserError

SCRIPT = """#!/usr/bin/env bash
# Written by `{command}`. Change it as you like, and submit it again with `sbatch {path}`, or with the same command.
#SBATCH --job-name={name}
#SBATCH --output={folder}-%j.log
#SBATCH --open-mode=append
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --signal=TERM@120
{options}
# One process a node has all of its devices; several find each other by themselves. Two minutes before the time limit, or when the job is
# preempted, training saves and ends with a code of its own, and the job is put back into the queue: it goes on from there.
cd {here}
export PYTHONPATH={root}
code=0
srun --kill-on-bad-exit=1 {python} -m mmlm {arguments} || code=$?
case $code in
  75 | 130 | 143) scontrol requeue "$SLURM_JOB_ID" ;;
esac
exit $code
"""


def submit(argv: list[str]) -> None:
  """Writes the file for the command `argv` of main.py, if it is not there, and submits it."""
  command, options = parse(argv)
  if not isinstance(options, Train):
    raise UserError(f'LAUNCHER=slurm {command}: train is what can be submitted.')
  folder = pathlib.Path(options.workdir).absolute()
  path = folder.with_name(f'{folder.name}.sbatch')
  if not path.exists():
    runs.write_atomic(
      path, script(argv[1:], folder, path, shlex.split(os.environ.get('SLURM_OPTIONS', '')))
    )
  print(f'{path}: the job, which you can change.')
  if not shutil.which('sbatch'):
    raise UserError(f'there is no sbatch on this machine. Submit {path} where there is.')
  done = subprocess.run(['sbatch', str(path)], capture_output=True, text=True)
  if done.returncode:
    raise UserError(f'sbatch {path}: {done.stderr.strip() or done.stdout.strip()}')
  print(f'{done.stdout.strip()}; it writes {folder}-NUMBER.log')


def script(words: list[str], folder: pathlib.Path, path: pathlib.Path, options: list[str]) -> str:
  """The text of the file; paths mean what they mean here."""
  if wrong := [option for option in options if not option.startswith('-')]:
    raise UserError(
      f"SLURM_OPTIONS: {wrong[0]!r} is no option of sbatch; write each as one word, '--nodes=2'."
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
  )


if __name__ == '__main__':
  try:
    submit(sys.argv)
  except UserError as error:
    print(f'mmlm: {error}', file=sys.stderr)
    sys.exit(2)
