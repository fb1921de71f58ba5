"""From a source of raw examples to an iterator over batches (Grain), resumable at any batch.

Axes: B batch, T time.
"""

import contextlib
import functools
import multiprocessing
import os
import signal
import threading
from typing import NamedTuple

import grain
import numpy as np

from mmlm.data import batching
from mmlm.data.transforms.ops import apply_ops
from mmlm.utils.errors import UserError
from mmlm.utils.watchdog import Watch

GRACE = 10.0  # seconds in which a loader process that is asked to end still gives batches


class Table(NamedTuple):
  """What is known of the examples before their pictures or sounds are read; one row for each (record, target) pair."""

  ids: list[str]
  records: np.ndarray  # [N] position in the source
  targets: list[list[int]]  # token ids with the end token; [] where only the inputs count
  texts: list[list[int]]  # token ids of the input text; [] without one
  labels: list[
    list
  ] = []  # numbers of classes, or numbers, one a part; [] for a task without labels
  parts: list[list[str]] = []  # names of what the labels are of; [] where each is of its example
  transcripts: list[
    list[int]
  ] = []  # token ids of what is said in a sound whose target is something else; [] without
  rows: dict[
    str, np.ndarray
  ] = {}  # {modality that is rows of features: [N] how many rows, 0 where an example has none}

  @property
  def lengths(self) -> np.ndarray:
    return np.max([*self.lengths_of.values()], 0)

  @property
  def lengths_of(self) -> dict[str, np.ndarray]:
    """{column: [N]}, of every column that has a length."""
    columns = {
      'target': self.targets,
      'text': self.texts,
      'label': self.labels,
      'transcript': self.transcripts,
    }
    return {
      name: np.array([*map(len, column)], int) for name, column in columns.items() if column
    } | self.rows

  def names(self, i: int) -> list[str]:
    """Of the rows of predictions that example i gives."""
    if self.parts:
      return self.parts[i]
    return [self.ids[i]]

  def with_rows(self, counts: dict[str, np.ndarray]) -> 'Table':
    """With the number of rows that each record of the source has in a modality."""
    return self._replace(
      rows={modality: of_record[self.records] for modality, of_record in counts.items()}
    )

  def select(self, rows) -> 'Table':
    def pick(column):
      if isinstance(column, np.ndarray):
        return column[rows]
      if column:
        return [column[i] for i in rows]
      return column

    return Table(
      *map(pick, self[:-1]),
      {name: counts[rows] for name, counts in self.rows.items()},
    )


class Loader:
  """Loads one `batching.Batch` of a table into the flat dict of arrays that models read.

  The random numbers of an example depend on (seed, number of the batch, row) alone, so on no worker.

  Args:
    blank: an example with every modality and nothing in it, before the ops: it gives the shapes where a whole batch lacks one.
    finish: batch -> batch, what only the main process can do (a frozen network).
    pad_id: fills token columns behind their ends.
    absent: a modality that is taken away from every example.
    whole_buckets: all columns are padded to the length of the bucket, so that few shapes are
      compiled.
    watch: names an example that takes long.
    part: which part of each batch is loaded, and how many parts there are.
  """

  def __init__(
    self,
    source,
    table: Table,
    modalities: tuple,
    ops: list,
    batch_size: int,
    seed: int = 0,
    blank=None,
    finish=None,
    pad_id: int = 0,
    absent: str = '',
    whole_buckets: bool = False,
    watch: Watch | None = None,
    part: tuple[int, int] = (0, 1),
  ):
    self.source = source
    self.table = table
    self.modalities = modalities
    self.ops = ops
    self.batch_size = batch_size
    self.seed = seed
    self.blank = blank or {}
    self.finish = finish
    self.pad_id = pad_id
    self.absent = absent
    self.whole_buckets = whole_buckets
    self.watch = watch or Watch()
    self.part = part
    self._longest: dict[int, dict[str, int]] = {}

  def __getstate__(self):
    return self.__dict__ | {'finish': None}

  def __call__(self, number: int, batch: batching.Batch) -> dict:
    def rng(row):
      return np.random.default_rng((self.seed, number, row))

    columns = {
      'target': self.table.targets,
      'label': self.table.labels,
      'transcript': self.table.transcripts,
    }
    batch, first = batching.part_of(batch, *self.part)
    examples = []
    if any(self.table.texts):
      columns['text'] = self.table.texts
    if set(self.modalities) - set(columns):  # tokens stand in the table: only others need reading
      for row, i in enumerate(batch.indices, first):
        with self.watch(
          lambda i=i: f'batch {number + 1}: {self.table.ids[i]!r} is read (process {os.getpid()})'
        ):
          examples.append(
            apply_ops(
              self.ops,
              self.source[int(self.table.records[i])],
              rng(row),
            )
          )
    out = {'weight': np.float32(np.arange(batch.size) < len(batch.indices))}
    outputs = [name for name in ('target', 'label', 'transcript') if any(columns[name])]
    for name in (*outputs, *self.modalities):
      if name in columns:
        if name == 'label' and not self.table.parts:
          length = 1
        else:
          length = self._padded(name, batch.length)
        if name == 'label':
          # Zero in the type of the column: this part may have no example.
          filler = type(next((value for row in columns[name] for value in row), 0))(0)
        else:
          filler = self.pad_id
        found = batching.pad([columns[name][i] for i in batch.indices], length, batch.size, filler)
      elif name in self.table.rows:
        rows = [example.get(name) for example in examples]
        found = batching.pad_features(
          rows, self._padded(name, batch.length), batch.size, lambda name=name: self.blank[name]
        )
      else:
        found = batching.stack(
          [example.get(name) for example in examples],
          batch.size,
          functools.partial(self._like, name),
        )
      out[name], mask = found
      out[f'{name}_mask'] = mask & (name != self.absent)
    return out

  def _padded(self, name: str, length: int) -> int:
    """To what a column is padded in a bucket. Frames are many and tokens few: beside them each column has its own length, the
    longest that the bucket may hold.
    """
    if not self.table.rows or self.whole_buckets:
      return length
    if length not in self._longest:
      inside = self.table.lengths <= length
      self._longest[length] = {
        key: int(counts[inside].max(initial=1)) for key, counts in self.table.lengths_of.items()
      }
    return self._longest[length][name]

  @functools.cache  # noqa: B019 a loader lives as long as the process
  def _like(self, name: str) -> np.ndarray:
    """An array of a modality as the ops leave it."""
    return apply_ops(self.ops, self.blank, np.random.default_rng(0))[name]


@contextlib.contextmanager
def stream(plan, loader: Loader, start: int, stop: int, workers: int = 0):
  """Yields an iterator over the batches start..stop of a plan, loaded ahead by threads or `workers` processes.

  The order is the plan's for any number of workers, so the position to save is the number of batches consumed.

  Raises:
    LostLoader: a loader process ended before its time.
  """
  dataset = grain.MapDataset.range(start, stop).map(lambda number: loader(number, plan[number]))
  dataset = dataset.to_iter_dataset(
    grain.ReadOptions(num_threads=1 if workers else 2, prefetch_buffer_size=4)
  )
  if workers:
    options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
    dataset = dataset.mp_prefetch(options, lambda *_: _begin_worker())
  iterator = iter(dataset)
  if workers:
    batches = _not_lost(iterator)
  else:
    batches = iterator
  try:
    yield map(loader.finish, batches) if loader.finish else batches
  finally:
    getattr(iterator, 'close', lambda: None)()


class LostLoader(UserError, RuntimeError):
  """A loader process ended before its time."""


def _not_lost(iterator):
  """The same batches; the end of a loader process is a LostLoader."""
  try:
    yield from iterator
  except RuntimeError as error:
    if 'Worker process was terminated' not in str(error):
      raise
    raise LostLoader(
      f'a loader process ended before its time ({str(error).split(". ")[0]}). Was there too little memory? The same command '
      'goes on from the last checkpoint; fewer data.workers need less.'
    ) from None


def _begin_worker():
  """Signals that reach every process of a terminal or a job leave a loader alive a while: the main one needs batches to come to a
  good end. A main process that was killed leaves none behind.
  """
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  signal.signal(signal.SIGTERM, lambda *_: _later(GRACE))
  threading.Thread(target=_end_with_parent, daemon=True).start()


def _later(seconds: float):
  timer = threading.Timer(seconds, os._exit, [1])
  timer.daemon = True
  timer.start()


def _end_with_parent():
  multiprocessing.parent_process().join()
  os._exit(1)
