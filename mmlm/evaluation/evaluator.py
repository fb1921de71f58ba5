"""Evaluation: the loss and the predictions of a split."""

import functools

import jax
import numpy as np

from mmlm.data import batching
from mmlm.data.datasets import progress
from mmlm.data.pipeline import Loader, Table, stream
from mmlm.data.text import Texts
from mmlm.decoding.search import SearchOptions
from mmlm.parallel import side_by_side


class Evaluator:
  """Compiled once, run on any split. Every example counts once: what fills a batch has weight 0."""

  def __init__(self, model, task, parallel, texts: Texts, options: SearchOptions, seed: int = 0):
    self.texts, self.options = texts, options
    self._losses = parallel.rows(lambda params, batch: task.losses(model, params, batch))
    key = jax.random.key(seed)
    self._generate = parallel.rows(lambda params, batch: task.generate(model, params, batch, options, key)._asdict())

  def loss(self, params, loader: Loader, buckets: tuple, workers: int = 0) -> dict:
    """{'loss': nats a token, 'perplexity'} over a table with targets; `params` are replicated."""
    sums = np.zeros(2)
    for _, parts in _computed(functools.partial(self._losses, params), loader, buckets, workers):
      sums += [float(np.sum(part)) for part in parts]
    loss = sums[0] / sums[1]
    return {'loss': loss, 'perplexity': float(np.exp(min(loss, 80)))}

  def predict(self, params, loader: Loader, buckets: tuple, workers: int = 0, name: str = '') -> list[dict]:
    """One row an example of the table, in its order: id, hypothesis, score and, when several are asked for, n_best."""
    rows: list = [None] * len(loader.table.ids)
    for indices, found in _computed(functools.partial(self._generate, params), loader, buckets, workers, name):
      for row, i in enumerate(indices):
        written = self.texts.decode_batch(found['tokens'][row])
        texts = [self.texts.surface(text) for text in written]
        scores = [float(score) for score in found['scores'][row]]
        rows[i] = {'id': loader.table.ids[i], 'hypothesis': texts[0], 'score': scores[0]}
        if self.texts.language:
          rows[i]['words'] = written[0]
        if len(texts) > 1:
          rows[i]['n_best'] = list(zip(texts, scores))
    return rows


def _computed(fn, loader: Loader, buckets, workers, name=''):
  """(rows of the table, fn of their batch) for every example once; with a name, progress is printed."""
  plan = batching.eval_plan(loader.table.lengths, loader.batch_size, buckets)
  with stream(plan, loader, 0, len(plan), workers) as batches:
    for found, part in zip(side_by_side(fn, batches), progress(plan, f'{name}: batches') if name else plan):
      yield part.indices, found


def shuffle_inputs(table: Table, seed: int = 0) -> Table:
  """The same ids and targets with the inputs of other examples: no record keeps its own place in the cycle."""
  order = np.random.default_rng(seed).permutation(len(table.ids))
  other = np.empty_like(order)
  other[order] = np.roll(order, 1)
  return table._replace(records=table.records[other], texts=[table.texts[i] for i in other])
