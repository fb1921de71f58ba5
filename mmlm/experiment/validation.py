"""Validation during training: losses and the monitored score of the validation splits."""

from collections.abc import Callable
from typing import Any

from mmlm.evaluation.evaluator import Evaluator
from mmlm.evaluation.metrics import METRICS
from mmlm.evaluation.score_predictions import Predictions, score_predictions
from mmlm.evaluation.text_evaluator import summary
from mmlm.experiment.decoding import GREEDY
from mmlm.experiment.experiment import Experiment
from mmlm.experiment.prediction import decode
from mmlm.utils.choices import one_of

# {name of a score: value}; names begin with the split if there are several.
Scores = dict[str, float]
# Parameters on the host -> scores
Validate = Callable[[Any], Scores]


def make_validation(experiment: Experiment) -> Validate:
  """Returns the validation of an experiment on examples or on running text."""
  if experiment.config.data.stream:
    return _validation_of_text(experiment)
  return _validation_of_examples(experiment)


def _prefixes(experiment: Experiment) -> dict:
  """Returns {prefix of the names of scores: validation split}."""
  splits = experiment.data.splits('valid')
  if len(splits) == 1:
    return {'': splits[0]}
  return {f'{split}/': split for split in splits}


def _check_monitor(experiment: Experiment, prefixes: dict, names: list) -> str:
  """Returns the name of the monitored score without its prefix.

  Raises:
    UserError: train.monitor is no score of the validation.
  """
  scores = []
  for prefix in prefixes:
    scores += [prefix + name for name in names]
  monitor = one_of('train.monitor', experiment.config.train.monitor, scores)
  return monitor.rpartition('/')[2]


def _validation_of_text(experiment: Experiment) -> Validate:
  """Computes the loss in nats a token and the metrics that the tokenizer allows."""
  data = experiment.data
  evaluator = experiment.text_evaluator()
  metrics = experiment.config.evaluate.metrics or experiment.task.metrics
  prefixes = _prefixes(experiment)
  _check_monitor(experiment, prefixes, ['loss', *metrics])
  limit = experiment.config.data.max_valid_examples
  texts = {}
  for prefix, split in prefixes.items():
    texts[prefix] = data.running_text(split).first(limit)

  def validate(params: Any) -> Scores:
    params = experiment.parallel.place(experiment.weights(params))
    values = {}
    for prefix, text in texts.items():
      scores = summary(evaluator.rows(params, text), metrics)
      values |= _prefixed(prefix, scores)
    return values

  return validate


def _validation_of_examples(experiment: Experiment) -> Validate:
  """Computes the loss and, if it is monitored, one metric of greedy decoding."""
  config = experiment.config
  data = experiment.data
  evaluator = experiment.evaluator(**GREEDY)
  limit = config.data.max_valid_examples
  prefixes = _prefixes(experiment)
  monitor = _check_monitor(experiment, prefixes, ['loss', 'perplexity', *METRICS])
  loaders = {}
  for split in prefixes.values():
    table = data.table(split, True, limit)
    loaders[split] = data.loader(split, table, config.evaluate.batch_size)

  def validate(params: Any) -> Scores:
    params = experiment.parallel.place(experiment.weights(params))
    values = {}
    for prefix, split in prefixes.items():
      scores = evaluator.loss(params, loaders[split], data.buckets, config.data.workers)
      if monitor in METRICS:
        scores |= _greedy_score(experiment, evaluator, params, split, monitor)
      values |= _prefixed(prefix, scores)
    return values

  return validate


def _greedy_score(
  experiment: Experiment, evaluator: Evaluator, params: Any, split: str, metric: str
) -> Scores:
  """Returns {metric: value} of a sample of a split."""
  config = experiment.config
  rows = decode(experiment, evaluator, params, split, config.data.max_valid_examples)
  predictions = Predictions(rows, config.data.languages.target)
  scores = score_predictions(predictions, (metric,), 1)
  return {name: score['value'] for name, score in scores.items()}


def _prefixed(prefix: str, scores: Scores) -> Scores:
  return {prefix + name: value for name, value in scores.items()}
