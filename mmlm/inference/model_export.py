"""./launch.sh export RUN: the model of a run for others, as safetensors and StableHLO, checked against the run itself.

Axes: B batch.
"""

import json
import pathlib

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
from mmlm.utils import run_dir as runs
from mmlm.utils.errors import UserError
from mmlm.utils.pytree import flat

ANY = 'any'  # the size of a batch of a function that takes every one
TOLERANCE = 1e-5  # of the outputs of an exported function, against the largest of the run's
TRAINING_ONLY = {
  'optimizer.lora_rules': (),
  'train.start_from': '',
  'evaluate.checkpoint': 'best',
  'evaluate.average': 1,
}


def export(
  workdir: str, output: str, platforms: list[str], settings: dict, with_functions: bool = True
) -> dict:
  """Writes the parameters, config, tokenizer and functions of a run; returns what export.json holds.

  Args:
    output: the folder; '' = WORKDIR/export.
    with_functions: whether to write the functions as StableHLO.

  Raises:
    UserError: a folder that holds something else; a function that gives other outputs than the run.
  """
  experiment = Experiment.of_run(workdir, settings | {'parallel.strategy': 'jit'})
  folder = pathlib.Path(output or f'{workdir}/export')
  _check_free(folder, workdir)
  batches = batches_of(experiment)
  (split,) = experiment.data.splits('valid')[:1]
  if experiment.modalities:
    params, step = params_of(
      experiment, experiment.data.loader(split, experiment.data.table(split, False), 1)
    )
  else:
    params, step = language_params(experiment)
  checksum = write_weights(folder, params)
  config = experiment.config.copy_and_resolve_references().unlock()
  config.update_from_flattened_dict(TRAINING_ONLY)
  runs.write_json(folder / 'config.json', json.loads(json.dumps(config.to_dict())))
  for name in ('tokenizer.json', 'environment.json'):
    if (source := experiment.folder / name).exists():
      runs.write_atomic(folder / name, source.read_bytes())
  options = experiment.config.evaluate
  about = {
    'run': str(workdir),
    'step': step,
    'checkpoint': str(options.checkpoint),
    'average': options.average,
    'checksum': checksum,
    'jax': jax.__version__,
    'functions': {},
  }
  runs.write_json(folder / ABOUT, about)  # without functions it is whole already
  saved, _ = read_weights(folder, params)
  if any(
    not np.array_equal(
      a,
      b,
    )
    for a, b in zip(*map(jax.tree.leaves, (saved, params)), strict=True)
  ):
    raise UserError(
      f'{folder / WEIGHTS}: the parameters that were read back are not those of the run.'
    )
  print(
    f'{folder / WEIGHTS}: {len(flat(params))} arrays of step {step}, the same bits as in the run'
  )
  functions = functions_of(experiment) if with_functions else {}
  for name, fn in functions.items():
    about['functions'][name] = _write_function(
      folder / f'{name}.stablehlo', fn, params, batches[name], platforms
    )
  runs.write_json(folder / ABOUT, about)
  return about


def _check_free(folder: pathlib.Path, workdir: str):
  if (
    folder.exists()
    and any(folder.iterdir())
    and not is_export(folder)
    and not (folder / WEIGHTS).exists()
  ):
    raise UserError(f'{folder} is not empty and holds no export: give another --output.')
  if folder.resolve() == pathlib.Path(workdir).resolve():
    raise UserError(f'{folder} is the run itself: give another --output.')
  (folder / ABOUT).unlink(missing_ok=True)
  for left in folder.glob('*.stablehlo'):
    left.unlink()


def functions_of(experiment: Experiment) -> dict:
  """{'forward': (params, batch) -> outputs, 'decode': the same to hypotheses, for a task that decodes}"""
  model = experiment.model
  task = experiment.task
  functions = {'forward': lambda params, batch: task.forward(model, params, batch)}
  if task.writes_text:
    options, fused = experiment.search_options()
    fusion = experiment.score_fusion(options, fused)
    key = jax.random.key(experiment.config.seed)
    functions['decode'] = lambda params, batch: task.answer(
      model, params, batch, options, key, fusion
    )
  return functions


def batches_of(experiment: Experiment) -> dict:
  """{name of a function: a batch of the validation data}, with evaluate.batch_size rows and the longest lengths."""
  split = experiment.data.splits('valid')[0]
  size = experiment.config.evaluate.batch_size
  if experiment.config.data.stream:
    batch = _running_text(experiment, split)
  else:
    table = experiment.data.table(split, True, size)
    plan = [batching.Batch(np.arange(len(table.ids)), experiment.data.buckets[-1], size)]
    with stream(plan, experiment.data.loader(split, table, size), 0, 1) as found:
      batch = {key: np.asarray(value) for key, value in next(found).items()}
  inputs = {f'{m}{end}' for m in experiment.modalities for end in ('', '_mask')} | {'weight'}
  return {'forward': batch, 'decode': {key: value for key, value in batch.items() if key in inputs}}


def _running_text(experiment: Experiment, split: str) -> dict:
  """Rows of the text of a split, as they are read when it is scored; a state that lanes carry is none of the inputs."""
  text = experiment.data.running_text(split)
  reading = experiment.text_evaluator().reading
  plan = evaluation_plan(text, *reading)
  result = {}
  for key, value in StreamLoader(text, plan, reading.apart)(0, plan[0]).items():
    if key != 'fresh':
      result[key] = value
  return result


def _write_function(path: pathlib.Path, fn, params, batch: dict, platforms: list[str]) -> dict:
  """Writes `fn` and compares what was written with `fn` itself; returns what export.json tells about it."""
  weights = flat(params)

  def named(weights, batch):
    return fn(unflatten_dict(weights, sep='/'), batch)

  found, size = _exported(named, weights, batch, platforms or [jax.default_backend()])
  runs.write_atomic(path, found.serialize())
  if size == ANY:
    sizes = (len(batch['weight']), 1)
  else:
    sizes = (size,)
  difference = 0.0
  if jax.default_backend() in found.platforms:
    read = jax_export.deserialize(bytearray(path.read_bytes()))
    for rows in sizes:
      some = {key: value[:rows] for key, value in batch.items()}
      difference = max(
        difference, _difference(path, jax.jit(read.call)(weights, some), jax.jit(fn)(params, some))
      )
    print(f'{path}: batches of {size} rows; largest difference to the run {difference:.1e}')

  def described(tree):
    result = {}
    for name, leaf in flat(tree).items():
      result[name] = [np.dtype(leaf.dtype).name, *map(str, leaf.shape)]
    return result

  _, inputs = jax.tree.unflatten(found.in_tree, found.in_avals)[0]
  return {
    'file': path.name,
    'batch': size,
    'platforms': list(found.platforms),
    'largest_difference': difference,
    'inputs': described(inputs),
    'outputs': described(jax.tree.unflatten(found.out_tree, found.out_avals)),
  }


def _exported(fn, weights: dict, batch: dict, platforms: list[str]):
  """(`fn` exported, ANY or the one size of its batches)."""

  def shapes(tree, first):
    result = {}
    for name, x in tree.items():
      result[name] = jax.ShapeDtypeStruct((*first, *x.shape[len(first) :]), x.dtype)
    return result

  def make(first):
    return jax_export.export(jax.jit(fn), platforms=platforms)(
      shapes(weights, ()), shapes(batch, first)
    )

  try:
    return make(jax_export.symbolic_shape('b')), ANY
  except Exception:  # whatever a function that needs to know the size raises
    size = len(batch['weight'])
    return make((size,)), size


def _difference(path, got: dict, wanted: dict) -> float:
  """The largest difference of two trees of outputs; UserError where it is more than rounding."""
  largest = 0.0
  for (name, a), b in zip(flat(got).items(), flat(wanted).values(), strict=True):
    a = np.asarray(a)
    b = np.asarray(b)
    if not np.issubdtype(a.dtype, np.floating):
      same = np.array_equal(a, b)
      gap = 0.0
    else:
      there = np.isfinite(b)
      gap = float(np.max(np.abs(a - b), where=there, initial=0.0))
      same = np.array_equal(
        a[~there],
        b[~there],
        equal_nan=True,
      ) and gap <= TOLERANCE * max(1.0, np.max(np.abs(b), where=there, initial=0.0))
    if not same:
      raise UserError(
        f'{path}: its {name!r} differ from those of the run (largest difference {gap:.1e}). It is no copy of the model.'
      )
    largest = max(largest, gap)
  return largest
