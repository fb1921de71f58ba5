"""Several seeds of one config trained as one program: the train step under `vmap`, one run folder a seed, as if trained one by one.

Axes: K seeds, B batch.
"""

import contextlib
import json
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np

from mmlm import config as configs
from mmlm import runs
from mmlm.commands import environment
from mmlm.errors import UserError
from mmlm.experiment import Experiment
from mmlm.setup import training_parts
from mmlm.training.step import train_step


def train_together(config, folders: dict[int, pathlib.Path]) -> list[Experiment]:
  """Trains a completed config once for each seed of {seed: run folder}; returns their experiments.

  Every run has its own initial parameters, dropout and order of data. Only the last checkpoint is kept: there is no validation
  on the way, and no resume.

  Raises:
    UserError: batches of different shapes (give the config one bucket), or a folder that is not empty.
  """
  experiments = []
  for seed, folder in folders.items():
    if folder.exists() and any(folder.iterdir()):
      raise UserError(f'{folder} is not empty: seeds are trained together from their start only.')
    experiments.append(Experiment(configs.override(config, {'seed': str(seed), 'parallel.strategy': 'jit'}), folder))
  if len(experiments[0].buckets) > 1:
    raise UserError(f'data.buckets={experiments[0].buckets}: seeds that are trained together need batches of one shape, so one bucket.')
  (split,) = experiments[0].splits('train')
  parts, states = zip(*(training_parts(experiment, split) for experiment in experiments))
  total, options = parts[0].schedule.total, parts[0].options
  step, state = step_of_all(options), stacked(states)
  began = time.monotonic()
  with contextlib.ExitStack() as stack:
    streams = [stack.enter_context(part.stream(0, total)) for part in parts]
    for batches in zip(*streams, strict=True):
      state, metrics = step(state, stacked(batches))
  losses = jax.device_get(metrics['loss'])
  if not np.isfinite(losses).all():
    bad = [seed for seed, loss in zip(folders, losses) if not np.isfinite(loss)]
    raise UserError(f'seeds {bad}: the loss is not finite at the end. Try a lower learning rate.')
  seconds = time.monotonic() - began
  for i, experiment in enumerate(experiments):
    _write(experiment, jax.tree.map(lambda leaf, i=i: leaf[i], state), float(losses[i]), seconds / len(experiments))
  return experiments


def step_of_all(options):
  """The train step of states and batches that are stacked along a first axis [K, ...]."""
  return jax.jit(jax.vmap(lambda state, batch: train_step(state, batch, options)), donate_argnums=0)


def stacked(trees):
  """Trees of one structure -> one with leaves [K, ...]."""
  return jax.tree.map(lambda *leaves: np.stack(leaves) if isinstance(leaves[0], np.ndarray) else jnp.stack(leaves), *trees)


def _write(experiment: Experiment, state, loss: float, seconds: float) -> None:
  """The run folder of one seed."""
  folder, step = experiment.folder, int(state.step)
  runs.write_json(folder / 'config.json', json.loads(json.dumps(experiment.config.to_dict())))
  runs.write_json(folder / 'environment.json', environment())
  runs.write_jsonl(folder / 'metrics.jsonl', [{'step': step, 'kind': 'train', 'loss': loss, 'seconds': seconds}])
  with contextlib.closing(experiment.checkpoints(writing=True)) as checkpoints:
    checkpoints.save(state, {'best': None, 'stale': 0}, {})
