"""Nats of every token of a running text: by windows that slide, or lanes whose state goes on.

Axes: N tokens of the text, B rows, T tokens of a row.
"""

from typing import NamedTuple

import numpy as np

from mmlm.data.running_text import RunningText, StreamLoader, evaluation_plan
from mmlm.evaluation.metrics import METRICS
from mmlm.evaluation.metrics.language_metrics import stretches
from mmlm.evaluation.metrics.metric import Unavailable
from mmlm.parallel import side_by_side


class Reading(NamedTuple):
  """How a text is read, see `streams.evaluation_plan`. Lanes start anew: with batch_size 1 the state goes through the whole text."""

  stream: str
  apart: bool
  length: int
  batch_size: int
  stride: int


class TextEvaluator:
  """Compiled once, run on any text; each token is predicted once. `whole`: the tokenizer loses nothing of a text."""

  def __init__(self, model, task, parallel, reading: Reading, whole: bool):
    self.model = model
    self.task = task
    self.parallel = parallel
    self.reading = reading
    self.whole = whole
    self._nats = parallel.rows(lambda params, batch: task.token_nats(model, params, batch))

  def nats(self, params, text: RunningText) -> np.ndarray:
    """[N]; `params` lie as `Parallel.place` puts them."""
    plan = evaluation_plan(text, *self.reading)
    loader = StreamLoader(text, plan, self.reading.apart, self.parallel.part)
    out = np.full(len(text.tokens), np.nan)
    batches = (loader(number, plan[number]) for number in range(len(plan)))
    if self.reading.stream == 'continuous':
      compute = self._carried
    else:
      compute = self._computed
    for number, found in enumerate(compute(params, batches)):
      for place, row in enumerate(plan[number].indices):
        column = 0
        for start, first, stop in plan.spans(int(row)):
          out[first:stop] = found[place, column + first - start : column + stop - start]
          column += stop - start
    return out

  def rows(self, params, text: RunningText) -> list[dict]:
    """The rows of predictions of a text."""
    return stretches(text, self.nats(params, text), self.whole)

  def _computed(self, params, batches):
    return side_by_side(lambda batch: self._nats(params, batch)['nats'], batches)

  def _carried(self, params, batches):
    carry = self.task.first_carry(self.model, self.reading.batch_size)
    for batch in batches:
      found = self._nats(params, batch | {'carry': carry})
      carry = found['carry']
      yield np.asarray(found['nats'])


def summary(rows: list[dict], names) -> dict:
  """{'loss': nats a token, and the metrics among `names` that the rows allow}"""
  found = {'loss': sum(row['nats'] for row in rows) / sum(row['tokens'] for row in rows)}
  for name in names:
    try:
      metric = METRICS[name]
      found[name] = float(metric.value(metric.statistics(rows, rows).sum(0)))
    except Unavailable:
      continue
  return found
