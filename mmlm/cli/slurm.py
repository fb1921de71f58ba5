"""`LAUNCHER=slurm ./launch.sh train ...`: the same command as a job of Slurm.

The script of the job is written beside the run folder, runs/x.sbatch for runs/x.
`SLURM_OPTIONS='--nodes=2 --gpus-per-node=8 --partition=gpu'` gives options of sbatch.
"""

import os
import shlex
import sys

from mmlm.cli.command_line import HelpRequested, parse
from mmlm.cli.flags import Train
from mmlm.sweeps.slurm_jobs import submit_training
from mmlm.utils.errors import UserError


def submit(argv: list[str]) -> None:
  """Submits the command of `argv`, which must be `train`."""
  command, options = parse(argv)
  if not isinstance(options, Train):
    raise UserError(f'LAUNCHER=slurm {command}: only train can be submitted.')
  sbatch_options = shlex.split(os.environ.get('SLURM_OPTIONS', ''))
  submit_training(argv[1:], options.workdir, sbatch_options)


if __name__ == '__main__':
  try:
    submit(sys.argv)
  except HelpRequested as help_text:
    print(help_text)
  except UserError as error:
    print(f'mmlm: {error}', file=sys.stderr)
    sys.exit(2)
