"""What the training loop needs to train word vectors: steps, batches, validation."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from mmlm import config as configs
from mmlm.data.pipeline import stream
from mmlm.experiment.training import watch_of
from mmlm.training import loop
from mmlm.training.optimizers import make_schedule
from mmlm.training.step import TrainState
from mmlm.utils.choices import one_of
from mmlm.word_vectors.sparse_step import RowOptions, initial_optimizer_state, row_step
from mmlm.word_vectors.vector_experiment import VectorExperiment

_VALID_BATCHES = 8  # of a validation


class _Numbers:
  """A plan for loaders that need only the number of a batch."""

  def __getitem__(self, number: int) -> int:
    return number


def training_parts(experiment: VectorExperiment, split: str) -> tuple[loop.Parts, TrainState]:
  """Returns what `loop.train` needs, and the state before the first step."""
  config = experiment.config
  train = config.train
  one_of('train.monitor', train.monitor, ('loss',))
  plan, loader = experiment.plan_and_loader(split, train.batch_size)
  validate = _validation(experiment)

  def steps(key: str, total: int | None = None) -> int:
    return configs.to_steps(
      train[key], f'train.{key}', plan.examples_per_step, plan.steps_per_epoch, total
    )

  def batches(start: int, stop: int):
    return stream(_Numbers(), loader, start, stop)

  def names_of_batch(number: int) -> list[str]:
    epoch, batch = divmod(number, plan.steps_per_epoch)
    return [f'of epoch {epoch} the batch {batch}']

  total = steps('duration')
  rate: Any = make_schedule(config.optimizer, total, plan.examples_per_step, plan.steps_per_epoch)
  params = experiment.initial_vectors()
  print(
    f'{split}: {len(experiment.corpus(split).ids):,} words of the vocabulary, '
    f'{plan.steps_per_epoch} steps an epoch, {total} steps in all'
  )
  parts = loop.Parts(
    options=RowOptions(experiment.model, rate, config.watch.non_finite == 'skip'),
    learning_rate=rate,
    validate=validate,
    step=row_step,
    stream=batches,
    ids=names_of_batch,
    schedule=loop.Schedule(
      total,
      max(1, steps('log_every', total)),
      max(1, steps('eval_every', total)),
      train.patience,
    ),
    watch=watch_of(config),
    skips=config.watch.skips_in_a_row,
  )
  return parts, _first_state(params, experiment.model.optimizer, config.seed)


def _first_state(
  params: dict,
  optimizer: str,
  seed: int,
) -> TrainState:
  first_step: Any = np.zeros((), np.int32)  # on the host until it is placed
  return TrainState(
    step=first_step,
    params=params,
    opt_state=initial_optimizer_state(params, optimizer),
    ema=(),
    rng=jax.random.key_data(jax.random.key(seed, impl='threefry2x32')),
  )


def _validation(experiment: VectorExperiment) -> Callable[[dict], dict[str, float]]:
  """Returns params -> mean loss of a pair over the first batches of each validation split."""
  model = experiment.model
  splits = experiment.splits('valid')
  loaders = {}
  for split in splits:
    prefix = f'{split}/' if len(splits) > 1 else ''
    loaders[prefix] = experiment.plan_and_loader(split, experiment.config.train.batch_size)

  @jax.jit
  def sums(params, batch):
    """Returns the sum and the number of the losses of a batch."""

    def of_update(_, update):
      found = model.gradients(params, update)
      return None, (found.loss, found.weight)

    _, of_updates = jax.lax.scan(of_update, None, model.prepare(batch))
    return jax.tree.map(lambda values: values.sum(), of_updates)

  def validate(params: dict) -> dict[str, float]:
    values = {}
    for prefix, (plan, loader) in loaders.items():
      batches = range(min(plan.steps_per_epoch, _VALID_BATCHES))
      of_batches = np.array([sums(params, loader(i, i)) for i in batches], np.float64)
      loss, weight = of_batches.sum(0)
      values[f'{prefix}loss'] = float(loss / max(weight, 1))
    return values

  return validate
