"""From an experiment to what its training needs: data, step, validation."""

from collections.abc import Callable
from typing import NamedTuple

import jax

from mmlm import config as configs
from mmlm.data import batching
from mmlm.data.labels import Classes
from mmlm.data.pipeline import stream
from mmlm.data.running_text import PLANS, StreamLoader
from mmlm.evaluation.metrics import METRICS
from mmlm.evaluation.score_predictions import Predictions, score_predictions
from mmlm.evaluation.text_evaluator import summary
from mmlm.experiment.experiment import Experiment
from mmlm.experiment.prediction import decode
from mmlm.training import loop
from mmlm.training.optimizers import make_optimizer, make_schedule
from mmlm.training.step import StepOptions, TrainState, initial_state
from mmlm.utils.choices import one_of
from mmlm.utils.errors import UserError
from mmlm.utils.watchdog import Watch

GREEDY = {
  'method': 'greedy',
  'n_best': 1,
  'temperature': 1.0,
  'top_k': 0,
  'top_p': 1.0,
  'ctc_weight': 0.0,
  'language_model_weight': 0.0,
  'ngram_weight': 0.0,
}


def training_parts(
  experiment: Experiment, split: str, validate=None
) -> tuple[loop.Parts, TrainState]:
  """What `loop.train` needs, and the state before the first step. `validate`: of another experiment with the same data and model."""
  config = experiment.config
  averages = config.optimizer.average_after
  if averages and config.train.ema_decay:
    raise UserError(
      f'optimizer.average_after={averages} and train.ema_decay={config.train.ema_decay}: choose one kind of average.'
    )
  validate = validate or (text_validation if config.data.stream else validation)(experiment)
  planned = _planned(experiment, split)
  plan = planned.plan
  loader = planned.loader
  steps = _steps(config, plan)
  total = steps('duration')
  with stream(plan, loader, 0, 1) as first:
    params = experiment.initial_params(next(first))
  rate = _rate(config, plan)
  options = step_options(experiment, config, rate, params)
  print(f'{split}: {planned.size}, {plan.steps_per_epoch} steps an epoch, {total} steps in all')
  parts = loop.Parts(
    options=options,
    learning_rate=rate,
    validate=validate,
    stream=lambda start, stop: stream(plan, loader, start, stop, config.data.workers),
    ids=planned.ids,
    schedule=loop.Schedule(
      total,
      max(1, steps('log_every', total)),
      max(1, steps('eval_every', total)),
      config.train.patience,
      averages,
    ),
    watch=watch_of(config),
    skips=config.watch.skips_in_a_row,
  )
  return parts, _first_state(experiment, params, options)


def watch_of(config) -> Watch:
  return Watch(config.watch.slow_seconds, config.watch.stop_seconds)


def _first_state(experiment: Experiment, params, options: StepOptions) -> TrainState:
  config = experiment.config
  if config.data.stream == 'continuous':
    carry = experiment.task.first_carry(experiment.model, config.train.batch_size)
  else:
    carry = ()
  return initial_state(params, options, config.seed, carry, config.optimizer.average_after > 0)


class _Planned(NamedTuple):
  """What a split gives to learn from."""

  plan: object  # which examples stand in which batch
  loader: object
  ids: Callable  # number of a batch -> ids of its examples
  size: str  # how much there is, in words


def _planned(experiment: Experiment, split: str) -> _Planned:
  return (_running_text if experiment.config.data.stream else _examples)(experiment, split)


def _examples(experiment: Experiment, split: str) -> _Planned:
  """Of examples one by one."""
  config = experiment.config
  table = experiment.data.table(split, with_targets=True, train=True)
  if isinstance(experiment.data.texts.outputs, Classes):
    experiment.data.texts.outputs.check_learnable(table.labels, split)
  plan = batching.TrainPlan(
    table.lengths,
    config.train.batch_size,
    experiment.data.buckets,
    config.seed,
    config.train.batch_tokens,
  )
  loader = experiment.data.loader(split, table, config.train.batch_size, train=True)
  return _Planned(
    plan,
    loader,
    lambda number: [table.ids[i] for i in plan[number].indices],
    f'{len(table.ids):,} examples',
  )


def _running_text(experiment: Experiment, split: str) -> _Planned:
  config = experiment.config
  text = experiment.data.running_text(split)
  plan = PLANS[config.data.stream](
    text, config.data.max_length, config.train.batch_size, config.seed
  )
  loader = StreamLoader(text, plan, experiment.data.documents_apart, experiment.parallel.part)
  return _Planned(
    plan, loader, loader.ids, f'{len(text.tokens):,} tokens in {len(text.ids):,} documents'
  )


def text_validation(experiment: Experiment):
  """params on the host -> {'loss': nats a token, and the metrics that the tokenizer allows} of running text."""
  config = experiment.config
  evaluator = experiment.text_evaluator()
  splits = experiment.data.splits('valid')
  names = {f'{split}/' if len(splits) > 1 else '': split for split in splits}
  metrics = config.evaluate.metrics or experiment.task.metrics
  one_of(
    'train.monitor',
    config.train.monitor,
    [prefix + name for prefix in names for name in ('loss', *metrics)],
  )
  texts = {}
  for prefix, split in names.items():
    texts[prefix] = experiment.data.running_text(split).first(config.data.max_valid_examples)

  def validate(params) -> dict:
    params = experiment.parallel.place(experiment.weights(params))
    found = {}
    for prefix, text in texts.items():
      found[prefix] = summary(evaluator.rows(params, text), metrics)
    result = {}
    for prefix, values in found.items():
      for name, value in values.items():
        result[prefix + name] = value
    return result

  return validate


def _steps(config, plan):
  """A key of config.train -> how many steps its duration is."""

  def steps(key: str, total: int | None = None) -> int:
    return configs.to_steps(
      config.train[key], f'train.{key}', plan.examples_per_step, plan.steps_per_epoch, total
    )

  return steps


def _rate(config, plan):
  """Step -> learning rate."""
  return make_schedule(
    config.optimizer, _steps(config, plan)('duration'), plan.examples_per_step, plan.steps_per_epoch
  )


def step_options(experiment: Experiment, config, rate, params) -> StepOptions:
  """The optimizer and the loss of `config`, that of the experiment or one in which numbers are traced, for parameters or their shapes."""
  if config is experiment.config:
    model = experiment.model
  else:
    model = experiment.model_of(config)
  task = experiment.task
  smoothing = config.train.label_smoothing

  def loss(params, batch, rng):
    return task.loss(model, experiment.weights(params), batch, smoothing, rng)

  optimizer = make_optimizer(config.optimizer, rate, params)
  skip = config.watch.non_finite == 'skip'
  return StepOptions(optimizer, loss, config.train.accumulate, config.train.ema_decay, skip)


def abstract_step(experiment: Experiment) -> tuple:
  """(step options, shapes of the state before the first step, a batch of the longest bucket); no parameters are made."""
  config, (split,) = experiment.config, experiment.data.splits('train')
  plan, loader, _, _ = _planned(experiment, split)
  longest = max(
    range(plan.steps_per_epoch), key=lambda number: plan[number].length * plan[number].size
  )
  with stream(plan, loader, longest, longest + 1) as batches:
    batch = next(batches)
  params = experiment.abstract_params(batch)
  options = step_options(experiment, config, _rate(config, plan), params)
  return (
    options,
    jax.eval_shape(lambda params: _first_state(experiment, params, options), params),
    batch,
  )


def validation(experiment: Experiment):
  """params on the host -> the validation scores that the config asks for."""
  config = experiment.config
  evaluator = experiment.evaluator(**GREEDY)
  size = config.evaluate.batch_size
  limit = config.data.max_valid_examples
  splits = experiment.data.splits('valid')
  names = {f'{split}/' if len(splits) > 1 else '': split for split in splits}
  scores = [prefix + name for prefix in names for name in ('loss', 'perplexity', *METRICS)]
  metric = one_of('train.monitor', config.train.monitor, scores).rpartition('/')[2]
  loaders = {
    split: experiment.data.loader(split, experiment.data.table(split, True, limit), size)
    for split in splits
  }

  def validate(params) -> dict:
    params = experiment.parallel.place(experiment.weights(params))
    values = {}
    for prefix, split in names.items():
      found = evaluator.loss(params, loaders[split], experiment.data.buckets, config.data.workers)
      if metric in METRICS:
        rows = decode(experiment, evaluator, params, split, limit)
        found |= {
          name: s['value']
          for name, s in score_predictions(
            Predictions(rows, config.data.languages.target), (metric,), 1
          ).items()
        }
      values |= {prefix + name: value for name, value in found.items()}
    return values

  return validate
