"""Nats of every token of a running text: by sliding windows, or lanes that carry the state on.

Axes: N tokens of the text, B rows of a batch, T tokens of a row.
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmlm.data.running_text import RunningText, StreamLoader, evaluation_plan
from mmlm.evaluation.metrics import METRICS
from mmlm.evaluation.metrics.language_metrics import stretches
from mmlm.evaluation.metrics.metric import Rows, Unavailable
from mmlm.parallel import run_concurrently
from mmlm.parallel.strategies import Strategy


class Reading(NamedTuple):
  """How a text is divided into batches, see `running_text.evaluation_plan`.

  Each lane begins with an empty state: with batch_size 1 the state is carried through the whole
  text.
  """

  stream: str
  apart: bool
  length: int
  batch_size: int
  stride: int


class TextEvaluator:
  """Computes the nats of a text; compiled once, run on any text. Each token is predicted once.

  Args:
    model: the module.
    task: a language model of mmlm/tasks.
    whole: the tokenizer loses nothing of a text.
  """

  def __init__(
    self,
    model: Any,
    task: Any,
    parallel: Strategy,
    reading: Reading,
    whole: bool,
  ):
    self.model = model
    self.task = task
    self.parallel = parallel
    self.reading = reading
    self.whole = whole

    def token_nats(params, batch: dict):
      return task.token_nats(model, params, batch)

    self._nats = parallel.per_example(token_nats)

  def nats(
    self,
    params: Any,
    text: RunningText,
  ) -> NDArray:
    """Returns the nats of each token, [N].

    Args:
      params: placed by `Parallel.place`.
    """
    plan = evaluation_plan(text, *self.reading)
    loader = StreamLoader(text, plan, self.reading.apart, self.parallel.part)
    batches = (loader(number, plan[number]) for number in range(len(plan)))
    if self.reading.stream == 'continuous':
      computed = self._carried(params, batches)
    else:
      computed = self._independent(params, batches)
    nats = np.full(len(text.tokens), np.nan)
    for number, of_batch in enumerate(computed):  # [B, T]
      for of_row, row in zip(of_batch, plan[number].indices):
        column = 0
        for start, first, stop in plan.spans(int(row)):
          nats[first:stop] = of_row[column + first - start : column + stop - start]
          column += stop - start
    return nats

  def rows(
    self,
    params: Any,
    text: RunningText,
  ) -> Rows:
    """Returns the predictions of a text."""
    return stretches(text, self.nats(params, text), self.whole)

  def _independent(
    self,
    params: Any,
    batches: Iterable[dict],
  ) -> Iterable[NDArray]:
    def nats(batch: dict):
      return self._nats(params, batch)['nats']

    return run_concurrently(nats, batches)

  def _carried(
    self,
    params: Any,
    batches: Iterable[dict],
  ) -> Iterator[NDArray]:
    carry = self.task.first_carry(self.model, self.reading.batch_size)
    for batch in batches:
      outputs = self._nats(params, batch | {'carry': carry})
      carry = outputs['carry']
      yield np.asarray(outputs['nats'])


def summary(rows: Rows, names: Iterable[str]) -> dict[str, float]:
  """Returns {'loss': nats a token} and the metrics among `names` that the predictions allow."""
  nats = sum(row['nats'] for row in rows)
  values = {'loss': nats / sum(row['tokens'] for row in rows)}
  for name in names:
    metric = METRICS[name]
    try:
      statistics = metric.statistics(*metric.view(rows, ''))
    except Unavailable:
      continue
    values[name] = float(metric.value(statistics.sum(0)))
  return values
