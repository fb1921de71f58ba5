"""What the training of an experiment needs: batches, step, schedule and validation."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from mmlm import config as configs
from mmlm.data import batching
from mmlm.data.labels import Classes
from mmlm.data.pipeline import stream
from mmlm.data.running_text import PLANS, StreamLoader
from mmlm.experiment.experiment import Experiment
from mmlm.experiment.validation import Validate, make_validation
from mmlm.training import loop
from mmlm.training.optimizers import make_optimizer, make_schedule
from mmlm.training.step import StepOptions, TrainState, initial_state
from mmlm.utils.errors import UserError
from mmlm.utils.watchdog import Watch


class TrainingData(NamedTuple):
  """The batches of a training split."""

  plan: Any  # number of a batch -> batching.Batch
  loader: Any  # (number of a batch, batching.Batch) -> its arrays
  ids: Callable[[int], list[str]]  # number of a batch -> ids of its examples
  size: str  # for messages


def training_parts(
  experiment: Experiment, split: str, validate: Validate | None = None
) -> tuple[loop.Parts, TrainState]:
  """Returns what `loop.train` needs, and the state before the first step.

  Args:
    split: the training split.
    validate: validation of another experiment with the same data and model.
  """
  config = experiment.config
  _check_averages(config)
  validate = validate or make_validation(experiment)
  data = training_data(experiment, split)
  plan, loader, ids, size = data
  total = _steps(config, plan, 'duration')
  with stream(plan, loader, 0, 1) as batches:
    params = experiment.initial_params(next(batches))
  learning_rate = _learning_rate(config, plan)
  options = step_options(experiment, config, learning_rate, params)
  print(f'{split}: {size}, {plan.steps_per_epoch} steps an epoch, {total} steps in all')
  parts = loop.Parts(
    options=options,
    learning_rate=learning_rate,
    validate=validate,
    stream=lambda start, stop: stream(plan, loader, start, stop, config.data.workers),
    ids=ids,
    schedule=_schedule(config, plan, total),
    watch=watch_of(config),
    skips=config.watch.skips_in_a_row,
  )
  return parts, _first_state(experiment, params, options)


def _check_averages(config: ConfigDict) -> None:
  averages = config.optimizer.average_after
  if averages and config.train.ema_decay:
    raise UserError(
      f'optimizer.average_after={averages} and train.ema_decay={config.train.ema_decay}: '
      'choose one kind of average.'
    )


def watch_of(config: ConfigDict) -> Watch:
  """Returns what reports batches and steps that take too long."""
  return Watch(config.watch.slow_seconds, config.watch.stop_seconds)


def _first_state(experiment: Experiment, params: Any, options: StepOptions) -> TrainState:
  config = experiment.config
  carry = ()
  if config.data.stream == 'continuous':
    task: Any = experiment.task  # a language model
    carry = task.first_carry(experiment.model, config.train.batch_size)
  averages = config.optimizer.average_after > 0
  return initial_state(params, options, config.seed, carry, averages)


# Batches


def training_data(experiment: Experiment, split: str) -> TrainingData:
  """Returns the batches of a split: of examples, or of running text where data.stream is set."""
  if experiment.config.data.stream:
    return _running_text(experiment, split)
  return _examples(experiment, split)


def _examples(experiment: Experiment, split: str) -> TrainingData:
  data = experiment.data
  options = experiment.config.train
  table = data.table(split, with_targets=True, train=True)
  if isinstance(data.texts.outputs, Classes):
    data.texts.outputs.check_learnable(table.labels, split)
  plan = batching.TrainPlan(
    table.lengths,
    options.batch_size,
    data.buckets,
    experiment.config.seed,
    options.batch_tokens,
  )

  def ids(number: int) -> list[str]:
    return [table.ids[i] for i in plan[number].indices]

  loader = data.loader(split, table, options.batch_size, train=True)
  return TrainingData(plan, loader, ids, f'{len(table.ids):,} examples')


def _running_text(experiment: Experiment, split: str) -> TrainingData:
  config = experiment.config
  text = experiment.data.running_text(split)
  make_plan = PLANS[config.data.stream]
  plan = make_plan(text, config.data.max_length, config.train.batch_size, config.seed)
  loader = StreamLoader(text, plan, experiment.data.documents_apart, experiment.parallel.part)
  size = f'{len(text.tokens):,} tokens in {len(text.ids):,} documents'
  return TrainingData(plan, loader, loader.ids, size)


# Steps


def _steps(config: ConfigDict, plan: Any, key: str, total: int | None = None) -> int:
  """Returns a duration of config.train in steps.

  Args:
    total: steps of the run, for durations that are a share of it.
  """
  return configs.to_steps(
    config.train[key], f'train.{key}', plan.examples_per_step, plan.steps_per_epoch, total
  )


def _schedule(config: ConfigDict, plan: Any, total: int) -> loop.Schedule:
  return loop.Schedule(
    total=total,
    log_every=max(1, _steps(config, plan, 'log_every', total)),
    eval_every=max(1, _steps(config, plan, 'eval_every', total)),
    patience=config.train.patience,
    average_after=config.optimizer.average_after,
  )


def _learning_rate(config: ConfigDict, plan: Any) -> Callable:
  """Returns step -> learning rate."""
  total = _steps(config, plan, 'duration')
  return make_schedule(config.optimizer, total, plan.examples_per_step, plan.steps_per_epoch)


def step_options(
  experiment: Experiment, config: ConfigDict, learning_rate: Callable, params: Any
) -> StepOptions:
  """Returns the optimizer and the loss of a config.

  Args:
    config: that of the experiment, or one in which numbers are traced.
    learning_rate: step -> learning rate.
    params: parameters, or their shapes.
  """
  model = experiment.model
  if config is not experiment.config:
    model = experiment.model_of(config)
  task = experiment.task
  smoothing = config.train.label_smoothing

  def loss(params: Any, batch: dict, rng: jax.Array) -> tuple:
    return task.loss(model, experiment.weights(params), batch, smoothing, rng)

  return StepOptions(
    optimizer=make_optimizer(config.optimizer, learning_rate, params),
    loss=loss,
    accumulate=config.train.accumulate,
    ema_decay=config.train.ema_decay,
    skip=config.watch.non_finite == 'skip',
  )


def abstract_step(experiment: Experiment) -> tuple[StepOptions, TrainState, dict]:
  """Describes a step on the longest batch, without making parameters.

  Returns:
    The options of the step, the shapes of the state before the first step, and the batch.
  """
  config = experiment.config
  data = training_data(experiment, *experiment.data.splits('train'))
  plan = data.plan

  def tokens(number: int) -> int:
    return plan[number].length * plan[number].size

  longest = max(range(plan.steps_per_epoch), key=tokens)
  with stream(plan, data.loader, longest, longest + 1) as batches:
    batch = next(batches)
  params = experiment.abstract_params(batch)
  options = step_options(experiment, config, _learning_rate(config, plan), params)
  state = jax.eval_shape(lambda params: _first_state(experiment, params, options), params)
  return options, state, batch
