"""A trained model that answers for raw examples."""

from typing import Any

import numpy as np

from mmlm.data.pipeline import Loader, Table
from mmlm.data.transforms.features import count_rows
from mmlm.data.transforms.ops import parse_ops
from mmlm.evaluation.evaluator import Evaluator
from mmlm.experiment.experiment import Experiment
from mmlm.experiment.prediction import params_of
from mmlm.utils.errors import UserError


class Predictor:
  """Answers for lists of raw examples with the checkpoint of a run.

  Args:
    evaluator: how to decode; by default as the config says.
    buckets: lengths that everything is padded to, so that few programs are compiled; by default
      those of the config, and features as they come.

  Attributes:
    step: step of the checkpoint; -1 before the first answer.
  """

  def __init__(
    self,
    experiment: Experiment,
    evaluator: Evaluator | None = None,
    buckets: tuple[int, ...] = (),
  ):
    self.experiment = experiment
    self.evaluator = evaluator or experiment.evaluator()
    self.params: Any = None
    self.step = -1
    self.batch_size = 0
    self.buckets = buckets or experiment.data.buckets
    self.whole_buckets = bool(buckets)

  def __call__(self, examples: list[dict], name: str) -> list[dict]:
    """Returns the predictions for examples.

    Args:
      name: where the examples come from, for messages.

    Raises:
      UserError: an example that is longer than the model reads.
    """
    data = self.experiment.data
    options = data.config.data
    table = data.task.table(examples, *data.texts, with_targets=False)
    ops = parse_ops(options.eval_ops)
    frames = count_rows(examples, data.widths, ops)
    table = table.with_rows(frames)
    _check_lengths(table, options.max_length, name)
    loader = self._loader(examples, table)
    predictions = []
    for rows in self.evaluator.predict(self.params, loader, self.buckets):
      predictions += rows
    return predictions

  def _loader(self, examples: list[dict], table: Table) -> Loader:
    experiment = self.experiment
    devices = experiment.parallel.devices
    on_all_devices = -(-len(table.ids) // devices) * devices
    limit = experiment.config.evaluate.batch_size
    # Never smaller than before: compiled programs are used again.
    self.batch_size = max(self.batch_size, min(limit, on_all_devices))
    loader = experiment.data.loader_of(
      examples,
      table,
      self.batch_size,
      whole_buckets=self.whole_buckets,
    )
    if self.params is None:
      self.params, self.step = params_of(experiment, loader)
    return loader


def _check_lengths(table: Table, limit: int, name: str) -> None:
  """Raises UserError for the longest example of a table if it exceeds data.max_length."""
  longest = int(np.argmax(table.lengths))
  length = table.lengths[longest]
  if length <= limit:
    return
  lengths = table.lengths_of
  column = max(lengths, key=lambda column: lengths[column][longest])
  unit = f'frames of {column}' if column in table.rows else 'tokens'
  raise UserError(
    f'{name}: {table.ids[longest]!r} has {length} {unit}, the model reads {limit} '
    'at most (data.max_length). Cut it.'
  )
