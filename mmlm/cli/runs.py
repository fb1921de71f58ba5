"""Lists the runs below a folder: state, step, best score, age."""

from mmlm.cli import flags
from mmlm.sweeps.listing import list_runs


def runs(options: flags.Runs) -> None:
  """Prints a line for each run."""
  for folder in options.folders or ['runs']:
    list_runs(folder)
