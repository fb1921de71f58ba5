"""From a source of raw examples to an iterator over batches (Grain), resumable at any batch.

Axes: B batch, T time.
"""

import contextlib
import signal
from typing import NamedTuple

import grain
import numpy as np

from mmlm.data import batching
from mmlm.data.ops import apply_ops


class Table(NamedTuple):
  """What is known of the examples before their pictures or sounds are read; one row for each (record, target) pair."""

  ids: list[str]
  records: np.ndarray  # [N] position in the source
  targets: list[list[int]]  # token ids with the end token; [] where only the inputs count
  texts: list[list[int]]  # token ids of the input text; [] without one

  @property
  def lengths(self) -> np.ndarray:
    return np.array([max(len(a), len(b)) for a, b in zip(self.targets, self.texts)], int)

  def select(self, rows) -> 'Table':
    ids, targets, texts = ([column[i] for i in rows] for column in (self.ids, self.targets, self.texts))
    return Table(ids, self.records[rows], targets, texts)


class Loader:
  """Loads one `batching.Batch` of a table into the flat dict of arrays that models read.

  The random numbers of an example depend on (seed, number of the batch, row) alone, so on no worker.
  """

  def __init__(self, source, table: Table, modalities: tuple, ops: list, batch_size: int, seed: int = 0, finish=None):
    self.source, self.table, self.modalities = source, table, modalities
    self.ops, self.batch_size, self.seed = ops, batch_size, seed
    self.absent = ''  # a modality that is taken away from every example
    self.finish = finish  # batch -> batch, what only the main process can do (a frozen network)

  def __getstate__(self):
    return self.__dict__ | {'finish': None}

  def __call__(self, number: int, batch: batching.Batch) -> dict:
    rng = lambda row: np.random.default_rng((self.seed, number, row))
    columns, examples = {'target': self.table.targets, 'text': self.table.texts}, []
    if set(self.modalities) - set(columns):  # texts stand in the table: only others need reading
      examples = [apply_ops(self.ops, self.source[int(self.table.records[i])], rng(row)) for row, i in enumerate(batch.indices)]
    out = {'weight': np.float32(np.arange(batch.size) < len(batch.indices))}
    for name in ('target', *self.modalities):
      if name in columns:
        found = batching.pad([columns[name][i] for i in batch.indices], batch.length, batch.size)
      else:
        found = batching.stack([example.get(name) for example in examples], batch.size)
      out[name], mask = found
      out[f'{name}_mask'] = mask & (name != self.absent)
    return out


@contextlib.contextmanager
def stream(plan, loader: Loader, start: int, stop: int, workers: int = 0):
  """Yields an iterator over the batches start..stop of a plan, loaded ahead by threads or `workers` processes.

  The order is the plan's for any number of workers, so the position to save is the number of batches consumed.
  """
  dataset = grain.MapDataset.range(start, stop).map(lambda number: loader(number, plan[number]))
  dataset = dataset.to_iter_dataset(grain.ReadOptions(num_threads=1 if workers else 2, prefetch_buffer_size=4))
  if workers:
    options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
    # Ctrl-C reaches every process of the terminal: the main one still needs batches to come to a good end.
    dataset = dataset.mp_prefetch(options, lambda *_: signal.signal(signal.SIGINT, signal.SIG_IGN))
  iterator = iter(dataset)
  try:
    yield map(loader.finish, iterator) if loader.finish else iterator
  finally:
    getattr(iterator, 'close', lambda: None)()
