"""An exported model: its parameters as one safetensors file, named by their paths, and what makes its folder an export.

runs/x/export/config.json        as the run's, without what only training needs
              tokenizer.json     as the run's
              environment.json   of the training
              model.safetensors  {'head/output/kernel': ...}: the parameters that are evaluated, LoRA's products added
              forward.stablehlo  (parameters, batch) -> outputs, read by `jax.export.deserialize`
              decode.stablehlo   (parameters, batch) -> hypotheses
              export.json        run, step, checksum of the parameters, inputs and outputs of the functions; written last
"""

import pathlib

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


def is_export(folder) -> bool:
  return (pathlib.Path(folder) / ABOUT).is_file()


def write_weights(folder: pathlib.Path, params) -> int:
  """Writes model.safetensors; returns its checksum."""
  arrays = {name: np.ascontiguousarray(leaf) for name, leaf in flat(params).items()}
  runs.write_atomic(folder / WEIGHTS, save(arrays, {'format': 'flax'}))
  return crc(folder / WEIGHTS)


def read_weights(folder, abstract=None) -> tuple[dict, int]:
  """Parameters of an export and their step.

  Raises:
    UserError: the file is damaged, or does not hold what `abstract` (a tree of shapes and types) asks for.
  """
  path = pathlib.Path(folder) / WEIGHTS
  about = runs.read_json(pathlib.Path(folder) / ABOUT)
  again = f'Export the run again: ./launch.sh export {about["run"]} --output {folder}'
  try:
    if crc(path) != about['checksum']:
      raise UserError(f'{path}: it has other bytes than were written (checksum). {again}')
    found = load(path.read_bytes())
  except (OSError, SafetensorError) as error:
    raise UserError(f'{path}: {error}. {again}') from None
  if abstract is not None and (unfit := misfits(found, flat(abstract))):
    raise UserError(
      '\n  '.join(
        [
          f'{path} holds other arrays than its config.json has: {len(unfit)} do not fit (there -> here).',
          *unfit[:20],
        ]
      )
    )
  return unflatten_dict(
    {tuple(name.split('/')): jnp.asarray(value) for name, value in found.items()}
  ), about['step']
