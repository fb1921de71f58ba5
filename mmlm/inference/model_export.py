"""Exports the model of a run as safetensors and StableHLO, and checks the files against the run.

mmlm/training/exported_weights.py lists the files.

Axes: B batch.
"""

import json
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import unflatten_dict
from jax import export as jax_export

from mmlm.data import batching
from mmlm.data.pipeline import stream
from mmlm.data.running_text import StreamLoader, evaluation_plan
from mmlm.experiment.experiment import Experiment
from mmlm.experiment.prediction import params_of
from mmlm.inference.scoring import language_params
from mmlm.training.exported_weights import ABOUT, WEIGHTS, is_export, read_weights, write_weights
from mmlm.utils import run_dir
from mmlm.utils.errors import UserError
from mmlm.utils.pytree import flat

ANY = 'any'  # the batch size of a function that takes every one
# Largest difference of the outputs of an exported function, relative to the run's largest output.
TOLERANCE = 1e-5
# Config keys that an export sets back to their defaults.
TRAINING_ONLY = {
  'optimizer.lora_rules': (),
  'train.start_from': '',
  'evaluate.checkpoint': 'best',
  'evaluate.average': 1,
}

Arrays = dict[str, np.ndarray]
# (parameters, batch) -> outputs
Function = Callable[[Any, dict], dict]


def export(
  workdir: str,
  output: str,
  platforms: list[str],
  settings: dict[str, str],
  with_functions: bool = True,
) -> dict:
  """Writes parameters, config, tokenizer and functions of a run.

  Args:
    workdir: the run folder.
    output: the folder of the export; '' = WORKDIR/export.
    platforms: that the functions are compiled for; [] = the one of this process.
    settings: overrides of the config.
    with_functions: write the functions as StableHLO.

  Returns:
    The contents of export.json.

  Raises:
    UserError: the folder holds something else, or a function gives other outputs than the run.
  """
  experiment = Experiment.of_run(workdir, settings | {'parallel.strategy': 'jit'})
  folder = pathlib.Path(output or f'{workdir}/export')
  _prepare_folder(folder, workdir)
  batches = batches_of(experiment)
  params, step = _trained_params(experiment)
  checksum = write_weights(folder, params)
  _write_config(folder, experiment)
  options = experiment.config.evaluate
  functions: dict[str, dict] = {}
  about = {
    'run': str(workdir),
    'step': step,
    'checkpoint': str(options.checkpoint),
    'average': options.average,
    'checksum': checksum,
    'jax': jax.__version__,
    'functions': functions,
  }
  run_dir.write_json(folder / ABOUT, about)  # an export without functions is complete
  _check_weights(folder, params)
  count = len(flat(params))
  print(f'{folder / WEIGHTS}: {count} arrays of step {step}, bit-identical to the run')
  if with_functions:
    for name, fn in functions_of(experiment).items():
      path = folder / f'{name}.stablehlo'
      batch = batches[name]
      functions[name] = _write_function(path, fn, params, batch, platforms)
    run_dir.write_json(folder / ABOUT, about)
  return about


def _prepare_folder(folder: pathlib.Path, workdir: str) -> None:
  """Removes an older export.

  Raises:
    UserError: the folder holds something else.
  """
  has_files = folder.exists() and any(folder.iterdir())
  holds_export = is_export(folder) or (folder / WEIGHTS).exists()
  if has_files and not holds_export:
    raise UserError(f'{folder} is not empty and holds no export: choose another --output.')
  run = pathlib.Path(workdir)
  if folder.resolve() == run.resolve():
    raise UserError(f'{folder} is the run itself: choose another --output.')
  (folder / ABOUT).unlink(missing_ok=True)
  for path in folder.glob('*.stablehlo'):
    path.unlink()


def _trained_params(experiment: Experiment) -> tuple[Any, int]:
  """Returns the parameters to export and their step."""
  if not experiment.modalities:
    return language_params(experiment)
  data = experiment.data
  split = data.splits('valid')[0]
  table = data.table(split, with_targets=False)
  loader = data.loader(split, table, batch_size=1)
  return params_of(experiment, loader)


def _write_config(folder: pathlib.Path, experiment: Experiment) -> None:
  """Writes config.json and copies the other files that describe the run."""
  config = experiment.config.copy_and_resolve_references()
  config.unlock()
  config.update_from_flattened_dict(TRAINING_ONLY)
  text = json.dumps(config.to_dict())
  run_dir.write_json(folder / 'config.json', json.loads(text))
  for name in ('tokenizer.json', 'environment.json'):
    source = experiment.folder / name
    if source.exists():
      run_dir.write_atomic(folder / name, source.read_bytes())


def _check_weights(folder: pathlib.Path, params: Any) -> None:
  """Raises UserError where the written parameters are not those of the run."""
  written, _ = read_weights(folder, params)
  leaves = jax.tree.leaves(written)
  expected = jax.tree.leaves(params)
  for leaf, expected_leaf in zip(leaves, expected, strict=True):
    if not np.array_equal(leaf, expected_leaf):
      raise UserError(f'{folder / WEIGHTS}: the written parameters differ from those of the run.')


# Functions


def functions_of(experiment: Experiment) -> dict[str, Function]:
  """Returns the functions of a model by name.

  'forward': (parameters, batch) -> outputs; 'decode', for a task that writes text: (parameters,
  batch) -> hypotheses.
  """
  model = experiment.model
  task = experiment.task

  def forward(params: Any, batch: dict) -> dict:
    return task.forward(model, params, batch)

  if not task.writes_text:
    return {'forward': forward}
  search, fusion_options = experiment.search_options()
  fusion = experiment.score_fusion(search, fusion_options)
  seed = experiment.config.seed
  key = jax.random.key(seed)

  def decode(params: Any, batch: dict) -> dict:
    return task.answer(
      model,
      params,
      batch,
      search,
      key,
      fusion,
    )

  return {'forward': forward, 'decode': decode}


def batches_of(experiment: Experiment) -> dict[str, dict]:
  """Returns {name of a function: a batch of the validation data}.

  A batch has evaluate.batch_size examples, padded to the longest bucket.
  """
  split = experiment.data.splits('valid')[0]
  if experiment.config.data.stream:
    batch = _batch_of_text(experiment, split)
  else:
    batch = _batch_of_examples(experiment, split)
  names = {'weight'}
  for modality in experiment.modalities:
    names |= {modality, f'{modality}_mask'}
  inputs = {}
  for name, array in batch.items():
    if name in names:
      inputs[name] = array
  return {'forward': batch, 'decode': inputs}


def _batch_of_examples(experiment: Experiment, split: str) -> Arrays:
  data = experiment.data
  size = experiment.config.evaluate.batch_size
  table = data.table(split, with_targets=True, limit=size)
  loader = data.loader(split, table, size)
  all_of_table = batching.Batch(
    indices=np.arange(len(table.ids)),
    length=data.buckets[-1],
    size=size,
  )
  with stream([all_of_table], loader, 0, 1) as batches:
    batch = next(batches)
  arrays = {}
  for name, array in batch.items():
    arrays[name] = np.asarray(array)
  return arrays


def _batch_of_text(experiment: Experiment, split: str) -> Arrays:
  """Returns a batch of running text as it is scored, without a state that is carried on."""
  text = experiment.data.running_text(split)
  reading = experiment.text_evaluator().reading
  plan = evaluation_plan(text, *reading)
  loader = StreamLoader(text, plan, reading.apart)
  batch = loader(0, plan[0])
  batch.pop('fresh', None)
  return batch


# StableHLO


class _Exported(NamedTuple):
  """An exported function and the batch size that it takes, a number or ANY."""

  function: jax_export.Exported
  batch_size: int | str


def _write_function(
  path: pathlib.Path,
  fn: Function,
  params: Any,
  batch: dict,
  platforms: list[str],
) -> dict:
  """Writes a function and compares the file with it; returns its entry in export.json."""
  weights = flat(params)

  def fn_of_names(weights: dict, batch: dict) -> dict:
    params = unflatten_dict(weights, sep='/')
    return fn(params, batch)

  platforms = platforms or [jax.default_backend()]
  exported, batch_size = _export_function(fn_of_names, weights, batch, platforms)
  content = exported.serialize()
  run_dir.write_atomic(path, bytes(content))
  difference = 0.0
  if jax.default_backend() in exported.platforms:
    sizes = [len(batch['weight']), 1] if batch_size == ANY else [batch_size]
    for size in sizes:
      part = {name: array[:size] for name, array in batch.items()}
      of_size = _difference_from(path, fn, params, part)
      difference = max(difference, of_size)
    print(f'{path}: batches of {batch_size} rows; largest difference to the run {difference:.1e}')
  arguments, _ = jax.tree.unflatten(exported.in_tree, exported.in_avals)
  _, inputs = arguments
  outputs = jax.tree.unflatten(exported.out_tree, exported.out_avals)
  return {
    'file': path.name,
    'batch': batch_size,
    'platforms': list(exported.platforms),
    'largest_difference': difference,
    'inputs': _describe(inputs),
    'outputs': _describe(outputs),
  }


def _describe(tree: Any) -> dict[str, list[str]]:
  """Returns {name of an array: [type, *shape]}."""
  arrays = {}
  for name, leaf in flat(tree).items():
    dtype = np.dtype(leaf.dtype)
    lengths = map(str, leaf.shape)
    arrays[name] = [dtype.name, *lengths]
  return arrays


def _export_function(fn: Function, weights: dict, batch: dict, platforms: list[str]) -> _Exported:
  """Exports a function for every batch size, or for the size of `batch` if it needs to know it."""

  def export_for(batch_shape: tuple) -> jax_export.Exported:
    export_shapes = jax_export.export(jax.jit(fn), platforms=platforms)
    return export_shapes(
      _shapes(weights),
      _shapes(batch, batch_shape),
    )

  try:
    any_size = jax_export.symbolic_shape('b')
    return _Exported(export_for(tuple(any_size)), ANY)
  except Exception:  # whatever a function that needs a number raises
    size = len(batch['weight'])
    return _Exported(export_for((size,)), size)


def _shapes(arrays: dict, first_axes: tuple = ()) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns the shapes of arrays with the first axes replaced."""
  shapes = {}
  for name, array in arrays.items():
    last_axes = array.shape[len(first_axes) :]
    shapes[name] = jax.ShapeDtypeStruct(
      (*first_axes, *last_axes),
      array.dtype,
    )
  return shapes


def _difference_from(path: pathlib.Path, fn: Function, params: Any, batch: dict) -> float:
  """Returns the largest difference between the outputs of a file and of its function."""
  content = bytearray(path.read_bytes())
  exported = jax_export.deserialize(content)
  run_file = jax.jit(exported.call)
  outputs = run_file(flat(params), batch)
  run_function = jax.jit(fn)
  expected = run_function(params, batch)
  return largest_difference(path, outputs, expected)


def largest_difference(path: pathlib.Path | str, outputs: dict, expected: dict) -> float:
  """Returns the largest difference of two trees of outputs.

  Raises:
    UserError: they differ by more than rounding.
  """
  largest = 0.0
  named_outputs = flat(outputs).items()
  expected_leaves = flat(expected).values()
  for named_output, leaf in zip(named_outputs, expected_leaves, strict=True):
    name, output = named_output
    difference, is_same = _compare(
      np.asarray(output),
      np.asarray(leaf),
    )
    if not is_same:
      raise UserError(
        f'{path}: its {name!r} differ from those of the run (largest difference {difference:.1e}).'
      )
    largest = max(largest, difference)
  return largest


def _compare(output: np.ndarray, expected: np.ndarray) -> tuple:
  """Returns the largest difference of two arrays, and whether it is within rounding."""
  if not np.issubdtype(output.dtype, np.floating):
    return 0.0, np.array_equal(output, expected)
  finite = np.isfinite(expected)
  difference = _largest(output - expected, finite)
  scale = _largest(expected, finite)
  is_close = difference <= TOLERANCE * max(1.0, scale)
  same_special = np.array_equal(
    output[~finite],
    expected[~finite],
    equal_nan=True,
  )
  return difference, is_close and same_special


def _largest(values: np.ndarray, where: np.ndarray) -> float:
  """Returns the largest absolute value where a mask is true; 0 if it is true nowhere."""
  magnitudes = np.abs(values)
  largest = np.max(magnitudes, where=where, initial=0.0)
  return float(largest)
