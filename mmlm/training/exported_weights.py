"""The weights of an exported model: one safetensors file with parameters named by their paths.

runs/x/export/config.json        as the run's, without what only training needs
              tokenizer.json     as the run's
              environment.json   of the training
              model.safetensors  {'head/output/kernel': ...}: the evaluated parameters, LoRA merged
              forward.stablehlo  (parameters, batch) -> outputs, read by `jax.export.deserialize`
              decode.stablehlo   (parameters, batch) -> hypotheses
              export.json        run, step, checksum of the parameters, inputs and outputs of the
                                 functions; written last, it marks a folder as an export
"""

import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict
from safetensors import SafetensorError
from safetensors.numpy import load, save

from mmlm.training.checksums import crc
from mmlm.utils import run_dir as runs
from mmlm.utils.errors import UserError
from mmlm.utils.pytree import flat, misfits

WEIGHTS = 'model.safetensors'
ABOUT = 'export.json'


def is_export(folder: str | pathlib.Path) -> bool:
  """Whether a folder is an export."""
  return (pathlib.Path(folder) / ABOUT).is_file()


def write_weights(folder: pathlib.Path, params: Any) -> int:
  """Writes model.safetensors; returns its checksum."""
  arrays = {name: np.ascontiguousarray(leaf) for name, leaf in flat(params).items()}
  runs.write_atomic(folder / WEIGHTS, save(arrays, {'format': 'flax'}))
  return crc(folder / WEIGHTS)


def read_weights(folder: str | pathlib.Path, abstract: Any = None) -> tuple[dict, int]:
  """Returns the parameters of an export and their step.

  Args:
    abstract: tree of their shapes and types; None takes any.

  Raises:
    UserError: the file is damaged, or its arrays are not those of `abstract`.
  """
  path = pathlib.Path(folder) / WEIGHTS
  about = runs.read_json(pathlib.Path(folder) / ABOUT)
  repair = f'Export the run again: ./launch.sh export {about["run"]} --output {folder}'
  try:
    if crc(path) != about['checksum']:
      raise UserError(f'{path}: it has other bytes than were written (checksum). {repair}')
    arrays = load(path.read_bytes())
  except (OSError, SafetensorError) as error:
    raise UserError(f'{path}: {error}. {repair}') from None
  if abstract is not None:
    _check(path, arrays, abstract)
  leaves = {tuple(name.split('/')): jnp.asarray(value) for name, value in arrays.items()}
  return unflatten_dict(leaves), about['step']


def _check(
  path: pathlib.Path,
  arrays: dict,
  abstract: Any,
) -> None:
  unfit = misfits(arrays, flat(abstract))
  if unfit:
    title = (
      f'{path} holds other arrays than its config.json has: {len(unfit)} do not fit '
      '(there -> here).'
    )
    raise UserError('\n  '.join([title, *unfit[:20]]))
