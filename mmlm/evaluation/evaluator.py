"""Evaluation: the loss and the predictions of a split."""

import functools

import jax
import numpy as np

from mmlm.data import batching
from mmlm.data.pipeline import Loader, Table, stream
from mmlm.decoding.score_fusion import ALONE, Fusion
from mmlm.decoding.search import SearchOptions
from mmlm.parallel import side_by_side
from mmlm.utils.progress import progress


class Evaluator:
  """Compiled once, run on any split. Every example counts once: what fills a batch has weight 0.

  `fusion`: what is searched with beside the model.
  """

  def __init__(
    self,
    model,
    task,
    parallel,
    outputs,
    options: SearchOptions,
    seed: int = 0,
    fusion: Fusion = ALONE,
  ):
    self.task = task
    self.outputs = outputs
    self.options = options
    self._losses = parallel.rows(lambda params, batch: task.losses(model, params, batch))
    key = jax.random.key(seed)
    self._arrays = parallel.replicate(fusion.arrays)
    self._answer = parallel.rows(
      lambda given, batch: task.answer(
        model, given[0], batch, options, key, fusion._replace(arrays=given[1])
      )
    )

  def loss(self, params, loader: Loader, buckets: tuple, workers: int = 0) -> dict:
    """What `task.summary` says of the mean loss over a table with targets; `params` are replicated."""
    sums = np.zeros(2)
    for _, parts in _computed(functools.partial(self._losses, params), loader, buckets, workers):
      sums += [float(np.sum(part)) for part in parts]
    return self.task.summary(sums[0] / sums[1])

  def predict(
    self, params, loader: Loader, buckets: tuple, workers: int = 0, name: str = ''
  ) -> list[list[dict]]:
    """For each example of the table, in its order, a row for each of its parts (`Table.names`), as `task.read` gives it."""
    rows: list = [None] * len(loader.table.ids)
    for indices, found in _computed(
      functools.partial(self._answer, (params, self._arrays)), loader, buckets, workers, name
    ):
      for place, i in enumerate(indices):
        answers = self.task.read({key: value[place] for key, value in found.items()}, self.outputs)
        rows[i] = [
          {'id': part} | row for part, row in zip(loader.table.names(i), answers, strict=True)
        ]
    return rows


def _computed(fn, loader: Loader, buckets, workers, name=''):
  """(rows of the table, fn of their batch) for every example once; with a name, progress is printed."""
  plan = batching.eval_plan(loader.table.lengths, loader.batch_size, buckets)
  with stream(plan, loader, 0, len(plan), workers) as batches:
    for found, part in zip(
      side_by_side(fn, batches), progress(plan, f'{name}: batches') if name else plan
    ):
      yield part.indices, found


def shuffle_inputs(table: Table, seed: int = 0) -> Table:
  """The same ids and targets with the inputs of other examples: no record keeps its own place in the cycle."""
  order = np.random.default_rng(seed).permutation(len(table.ids))
  other = np.empty_like(order)
  other[order] = np.roll(order, 1)
  rows = {modality: counts[other] for modality, counts in table.rows.items()}
  return table._replace(
    records=table.records[other], texts=[table.texts[i] for i in other], rows=rows
  )
