"""`./launch.sh reproduce`: runs what a paper's table lacks, and renders it."""

import importlib
import sys
from typing import Any

from mmlm.config import ROOT
from mmlm.utils.errors import UserError


def reproduce(**arguments: Any) -> None:
  """Runs experiments/reproduce.py, which is beside the package and not part of it."""
  file = ROOT / 'experiments' / 'reproduce.py'
  if not file.is_file():
    raise UserError(f'no {file}: `reproduce` needs the whole repository, not the package alone.')
  if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))
  module = importlib.import_module('experiments.reproduce')
  module.reproduce(**arguments)
