"""Reads the config of a run folder."""

import pathlib
from collections.abc import Callable
from typing import Any

from mmlm import config as configs
from mmlm.utils import run_dir
from mmlm.utils.errors import UserError

# (run folder, overrides of its config) -> its experiment
OpenRun = Callable[[str, dict], Any]


def config_of_run(folder: str | pathlib.Path, assignments: dict[str, str]) -> Any:
  """Returns the completed config of a run, with overrides such as {'decoding.method': 'greedy'}."""
  path = pathlib.Path(folder) / 'config.json'
  if not path.is_file():
    raise UserError(
      f'{folder}: not a run folder (no config.json). '
      f'Runs are made by `./launch.sh train CONFIG --workdir {folder}`.'
    )
  return configs.override(configs.from_dict(run_dir.read_json(path)), assignments)
