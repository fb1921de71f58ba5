"""A run folder belongs to one config: claiming it for a new run, checking it for a resumed one."""

import json
import pathlib

from ml_collections import ConfigDict

from mmlm import config as configs
from mmlm.training.exported_weights import is_export
from mmlm.utils import run_dir
from mmlm.utils.errors import UserError
from mmlm.utils.pytree import differences


def check_folder(folder: pathlib.Path) -> None:
  """Raises UserError where a folder holds something other than a run that can be resumed."""
  if is_export(folder):
    raise UserError(
      f'{folder} holds an exported model, which cannot be trained. '
      f'To start from it: --config.train.start_from={folder}'
    )
  run_dir.refuse_foreign(folder, 'config.json', 'run')


def claim(folder: pathlib.Path, config: ConfigDict) -> None:
  """Writes the config into a new run folder, or checks that the run in it has this config.

  `check_folder` must have accepted the folder.

  Raises:
    UserError: the run in the folder has another config; the keys that differ are listed.
  """
  path = folder / 'config.json'
  if path.exists():
    if _has_begun(folder):
      _check_config(folder, config)
    else:
      (folder / 'tokenizer.json').unlink(missing_ok=True)
  run_dir.write_json(path, _as_json(config))


def _has_begun(folder: pathlib.Path) -> bool:
  """Returns whether there was a first step; before it there is nothing to lose."""
  return any((folder / name).exists() for name in ('metrics.jsonl', 'checkpoints'))


def _check_config(folder: pathlib.Path, config: ConfigDict) -> None:
  stored = configs.from_dict(run_dir.read_json(folder / 'config.json'))
  stored = configs.complete(stored)  # adds the defaults of keys that are newer than the run
  changes = differences(
    configs.without_resumable(_as_json(stored)), configs.without_resumable(_as_json(config))
  )
  if changes:
    listed = ''.join(f'\n  {change}' for change in changes)
    raise UserError(
      f'{folder} holds a run of another config. It differs in{listed}\n'
      'Choose another --workdir, or the settings of that run.'
    )


def _as_json(config: ConfigDict) -> dict:
  """Returns a config as it is read back from config.json."""
  return json.loads(json.dumps(config.to_dict()))
