"""Trains and evaluates the missing rows of a paper's table, and renders the tables."""

import importlib
import sys

from mmlm.cli import flags
from mmlm.config import ROOT
from mmlm.utils.errors import UserError


def reproduce(options: flags.Reproduce) -> None:
  """Runs experiments/reproduce.py, which is beside the package and not part of it."""
  file = ROOT / 'experiments' / 'reproduce.py'
  if not file.is_file():
    raise UserError(f'no {file}: `reproduce` needs the whole repository, not the package alone.')
  if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))
  module = importlib.import_module('experiments.reproduce')
  module.reproduce(
    options.table, options.rows, options.seeds, options.runs, options.data_dir, options.settings
  )
