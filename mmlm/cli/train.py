"""Trains a model, or resumes the run in the folder."""

import contextlib
import sys

import jax

from mmlm import config as configs
from mmlm.cli import flags
from mmlm.experiment.claim import check_folder, claim
from mmlm.experiment.data import split_names
from mmlm.experiment.environment import announce_environment
from mmlm.experiment.experiment import Experiment
from mmlm.experiment.training import training_parts
from mmlm.parallel import hosts
from mmlm.tasks import TASKS
from mmlm.training import loop
from mmlm.training.optimizers import rates_of
from mmlm.utils import run_dir
from mmlm.utils.choices import one_of
from mmlm.utils.pytree import count


@loop.preemptible()
def train(options: flags.Train) -> None:
  """Trains a config in a run folder; one of several processes where `hosts.join` finds them."""
  hosts.join(options.coordinator, options.processes, options.process)
  settings = dict(options.settings)
  if options.skip_broken:
    settings['data.skip_broken'] = 'True'
  config = configs.override(configs.load_config(options.config), settings)
  pipeline = TASKS[one_of('task', config.task, TASKS)].pipeline
  if pipeline:
    experiment = pipeline.experiment(config, options.workdir)
    parts_of = pipeline.training_parts
  else:
    experiment = Experiment(config, options.workdir)
    parts_of = training_parts
  with contextlib.ExitStack() as resources:
    with hosts.writer_first():  # the others find data sets, tokenizer and grids made
      experiment.check()
      _claim_folder(experiment, resources)
      (split,) = split_names(experiment.config, 'train')
      parts, state = parts_of(experiment, split)
      _announce_parameters(experiment, state)
    checkpoints = experiment.checkpoints(writing=True)
    try:
      loop.train(parts, experiment.parallel, state, checkpoints, experiment.folder)
    except loop.Interrupted as stopped:
      print(stopped)
      sys.exit(stopped.code)


def _claim_folder(experiment: Experiment, resources: contextlib.ExitStack) -> None:
  """Claims the run folder, and locks it as long as `resources` are open."""
  folder = experiment.folder
  check_folder(folder)  # before a lock is left in it
  if hosts.writes():
    resources.enter_context(contextlib.closing(run_dir.lock(folder)))
    claim(folder, experiment.config)
    run_dir.write_json(folder / 'environment.json', announce_environment())


def _announce_parameters(experiment: Experiment, state) -> None:
  """Prints how many parameters there are, and how many are trained."""
  params = state.params
  rates = rates_of(experiment.config.optimizer, params)
  trained = 0
  for leaf, rate in zip(jax.tree.leaves(params), jax.tree.leaves(rates)):
    if rate:
      trained += leaf.size
  print(
    f'{count(params):,} parameters, {trained:,} of them trained; run folder {experiment.folder}',
    flush=True,
  )
