"""Evaluation: the loss and the predictions of a split."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from mmlm.data import batching
from mmlm.data.pipeline import Loader, Table, stream
from mmlm.decoding.score_fusion import NO_FUSION, Fusion
from mmlm.decoding.search_options import SearchOptions
from mmlm.parallel import run_concurrently
from mmlm.parallel.strategies import Strategy
from mmlm.utils.progress import progress

Params = Any  # a tree of arrays


class Evaluator:
  """Computes losses and predictions; compiled once, run on any split.

  Every example counts once: padding of a batch has weight 0.

  Args:
    model: the module.
    task: a task of mmlm/tasks.
    outputs: the tokenizer, or the classes, that the task reads its outputs with.
    options: of the search.
    seed: of what is sampled.
    fusion: the scores that the search adds to the model's.
  """

  def __init__(
    self,
    model: Any,
    task: Any,
    parallel: Strategy,
    outputs: Any,
    options: SearchOptions,
    seed: int = 0,
    fusion: Fusion = NO_FUSION,
  ):
    self.task = task
    self.outputs = outputs
    self.options = options
    self._arrays = parallel.replicate(fusion.arrays)
    key = jax.random.key(seed)

    def losses(params: Params, batch: dict):
      return task.losses(model, params, batch)

    def answer(params_and_arrays: tuple, batch: dict):
      params, arrays = params_and_arrays
      return task.answer(model, params, batch, options, key, fusion._replace(arrays=arrays))

    self._losses = parallel.per_example(losses)
    self._answer = parallel.per_example(answer)

  def loss(
    self,
    params: Params,
    loader: Loader,
    buckets: tuple,
    workers: int = 0,
  ) -> dict:
    """Returns `task.summary` of the mean loss over a table with targets.

    Args:
      params: replicated.
    """
    sums = np.zeros(2)
    losses = functools.partial(self._losses, params)
    for _, parts in _computed(losses, loader, buckets, workers):
      sums += [float(np.sum(part)) for part in parts]
    return self.task.summary(sums[0] / sums[1])

  def predict(
    self,
    params: Params,
    loader: Loader,
    buckets: tuple,
    workers: int = 0,
    name: str = '',
  ) -> list[list[dict]]:
    """Returns the predictions of each example of the table, in its order.

    An example has one for each of its parts (`Table.names`), as `task.read` returns it.

    Args:
      name: of the split; with it progress is printed.
    """
    predictions: list = [None] * len(loader.table.ids)
    answer = functools.partial(self._answer, (params, self._arrays))
    for indices, outputs in _computed(answer, loader, buckets, workers, name):
      for place, example in enumerate(indices):
        of_example = {key: value[place] for key, value in outputs.items()}
        answers = self.task.read(of_example, self.outputs)
        names = loader.table.names(example)
        predictions[example] = []
        for part, prediction in zip(names, answers, strict=True):
          predictions[example].append({'id': part} | prediction)
    return predictions


def _computed(
  function: Callable,
  loader: Loader,
  buckets: tuple,
  workers: int,
  name: str = '',
) -> Iterator[tuple]:
  """Yields (indices of examples in the table, function of their batch), each example once."""
  plan = batching.eval_plan(loader.table.lengths, loader.batch_size, buckets)
  parts = progress(plan, f'{name}: batches') if name else plan
  with stream(plan, loader, 0, len(plan), workers) as batches:
    for outputs, part in zip(run_concurrently(function, batches), parts):
      yield part.indices, outputs


def shuffle_inputs(table: Table, seed: int = 0) -> Table:
  """Returns the same ids and targets with the inputs of other examples.

  No example keeps its inputs: they move on by one along a random cycle.
  """
  order = np.random.default_rng(seed).permutation(len(table.ids))
  donors = np.empty_like(order)
  donors[order] = np.roll(order, 1)
  return table._replace(
    records=table.records[donors],
    texts=[table.texts[donor] for donor in donors],
    rows={modality: counts[donors] for modality, counts in table.rows.items()},
  )
