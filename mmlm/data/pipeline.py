"""From a source of raw examples to an iterator over batches (Grain), resumable at any batch.

Axes: B batch, T time.
"""

import contextlib
import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import grain
import numpy as np

from mmlm.data import batching
from mmlm.data.sources.source import Source
from mmlm.data.transforms.ops import Op, apply_ops
from mmlm.utils.errors import UserError
from mmlm.utils.watchdog import Watch

GRACE_SECONDS = 10.0  # in which a loader process still gives batches after a signal to end


class Table(NamedTuple):
  """What is known of examples before their pictures or sounds are read.

  There is an entry for each pair of a record of the source and a target.
  """

  ids: list[str]
  records: np.ndarray  # [N] position in the source
  targets: list[list[int]]  # token ids with the end token; [] if only inputs are read
  texts: list[list[int]]  # token ids of the input text; [] without one
  labels: list[list] = []  # classes or numbers, one a part; [] for a task without labels
  parts: list[list[str]] = []  # names of what labels are of; [] if each is of its example
  transcripts: list[list[int]] = []  # token ids of the words of a sound, if not the target
  rows: dict[str, np.ndarray] = {}  # {modality that is features: [N] frames, 0 without any}

  @property
  def lengths(self) -> np.ndarray:
    """[N], the longest column of each example."""
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
    lengths = {}
    for name, column in columns.items():
      if column:
        lengths[name] = np.array([len(entry) for entry in column], int)
    return lengths | self.rows

  def names(self, i: int) -> list[str]:
    """Returns the ids of the predictions for an entry."""
    if self.parts:
      return self.parts[i]
    return [self.ids[i]]

  def with_rows(self, counts: dict[str, np.ndarray]) -> 'Table':
    """Returns the table with the feature frames of each record of the source."""
    frames = {modality: of_record[self.records] for modality, of_record in counts.items()}
    return self._replace(rows=frames)

  def select(self, indices: np.ndarray) -> 'Table':
    """Returns the table of some entries."""
    columns = [_selected(column, indices) for column in self[:-1]]
    frames = {name: counts[indices] for name, counts in self.rows.items()}
    return Table(*columns, rows=frames)


def _selected(column: Any, indices: np.ndarray) -> Any:
  if isinstance(column, np.ndarray):
    return column[indices]
  if column:
    return [column[i] for i in indices]
  return column


class Loader:
  """Loads a `batching.Batch` of a table as the flat dict of arrays that models read.

  The random numbers of an example depend only on (seed, number of the batch, position), so they do
  not depend on the number of loader processes.

  Args:
    ops: transforms of an example.
    blank: an example with empty values of every modality, before the transforms; it gives the
      shapes if no example of a batch has a modality.
    finish: batch -> batch, computed in the main process (a frozen network).
    pad_id: fills token columns after their ends.
    absent: a modality that is masked in every example.
    whole_buckets: pad all columns to the length of the bucket, so that few shapes are compiled.
    watch: names an example that takes long.
    part: which part of each batch is loaded, and how many parts there are.
  """

  def __init__(
    self,
    source: Source | Sequence[dict],
    table: Table,
    modalities: Sequence[str],
    ops: Sequence[Op],
    batch_size: int,
    seed: int = 0,
    blank: dict | None = None,
    finish: Callable[[dict], dict] | None = None,
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

  def __getstate__(self) -> dict:
    return self.__dict__ | {'finish': None}

  def __call__(
    self,
    number: int,
    batch: batching.Batch,
  ) -> dict[str, np.ndarray]:
    """Returns the arrays of a batch, {name: values, name_mask: mask, 'weight': [B]}."""
    batch, first = batching.part_of(batch, *self.part)
    columns = {
      'target': self.table.targets,
      'label': self.table.labels,
      'transcript': self.table.transcripts,
    }
    outputs = [name for name, column in columns.items() if any(column)]
    if any(self.table.texts):
      columns['text'] = self.table.texts
    examples = []
    if set(self.modalities) - set(columns):  # columns of the table need no reading
      examples = self._examples(number, batch, first)
    arrays: dict[str, Any] = {'weight': np.float32(np.arange(batch.size) < len(batch.indices))}
    for name in (*outputs, *self.modalities):
      if name in columns:
        values, mask = self._column(name, columns[name], batch)
      else:
        values, mask = self._modality(name, examples, batch)
      arrays[name] = values
      arrays[f'{name}_mask'] = mask & (name != self.absent)
    return arrays

  def _examples(
    self,
    number: int,
    batch: batching.Batch,
    first: int,
  ) -> list[dict]:
    """Returns the transformed examples of a batch.

    Args:
      first: position in the whole batch of the first one.
    """
    examples = []
    for position, i in enumerate(batch.indices, first):
      rng = np.random.default_rng((self.seed, number, position))
      waits_for = functools.partial(self._waits_for, number, i)
      with self.watch(waits_for):
        example = self.source[int(self.table.records[i])]
        examples.append(apply_ops(self.ops, example, rng))
    return examples

  def _waits_for(
    self,
    number: int,
    i: int,
  ) -> str:
    return f'batch {number + 1}: {self.table.ids[i]!r} is read (process {os.getpid()})'

  def _column(
    self,
    name: str,
    column: list[list],
    batch: batching.Batch,
  ) -> batching.Padded:
    """Returns a column of the table, padded."""
    length = self._padded_length(name, batch.length)
    filler = self.pad_id
    if name == 'label':
      if not self.table.parts:
        length = 1
      # Zero in the type of the column: this part of the batch may have no example.
      filler = type(next((value for labels in column for value in labels), 0))(0)
    return batching.pad([column[i] for i in batch.indices], length, batch.size, filler)

  def _modality(
    self,
    name: str,
    examples: list[dict],
    batch: batching.Batch,
  ) -> batching.Padded:
    """Returns a modality of the examples, as features or as arrays of one shape."""
    values = [example.get(name) for example in examples]
    if name in self.table.rows:
      length = self._padded_length(name, batch.length)
      return batching.pad_features(values, length, batch.size, lambda: self.blank[name])
    return batching.stack(values, batch.size, lambda: self._transformed_blank(name))

  def _padded_length(
    self,
    name: str,
    length: int,
  ) -> int:
    """Returns the length that a column is padded to in a bucket.

    Frames are many and tokens few: beside features each column has its own length, the longest that
    the bucket may contain.
    """
    if not self.table.rows or self.whole_buckets:
      return length
    if length not in self._longest:
      inside = self.table.lengths <= length
      longest = {}
      for column, counts in self.table.lengths_of.items():
        longest[column] = int(counts[inside].max(initial=1))
      self._longest[length] = longest
    return self._longest[length][name]

  @functools.cache  # noqa: B019 a loader lives as long as the process
  def _transformed_blank(self, name: str) -> np.ndarray:
    """Returns an array of a modality as the transforms make it."""
    return apply_ops(self.ops, self.blank, np.random.default_rng(0))[name]


@contextlib.contextmanager
def stream(
  plan: Any, loader: Any, start: int, stop: int, workers: int = 0
) -> Iterator[Iterator[dict]]:
  """Yields an iterator over the batches start..stop of a plan, loaded ahead.

  The order is the plan's for any number of workers: the position to save is the number of batches
  consumed.

  Args:
    plan: batch number -> batch.
    loader: (batch number, batch) -> arrays.
    workers: loader processes; 0 = threads.

  Raises:
    LostLoader: a loader process ended before its time.
  """
  dataset = grain.MapDataset.range(
    start,
    stop,
  ).map(lambda number: loader(number, plan[number]))
  options = grain.ReadOptions(num_threads=1 if workers else 2, prefetch_buffer_size=4)
  dataset = dataset.to_iter_dataset(options)
  if workers:
    processes = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
    dataset = dataset.mp_prefetch(processes, lambda *_: _begin_worker())
  iterator = iter(dataset)
  batches = _name_lost_loaders(iterator) if workers else iterator
  try:
    yield map(loader.finish, batches) if loader.finish else batches
  finally:
    getattr(iterator, 'close', lambda: None)()


class LostLoader(UserError, RuntimeError):
  """A loader process ended before its time."""


def _name_lost_loaders(iterator: Iterator[dict]) -> Iterator[dict]:
  """Yields the same batches; the end of a loader process is a LostLoader."""
  try:
    yield from iterator
  except RuntimeError as error:
    if 'Worker process was terminated' not in str(error):
      raise
    reason = str(error).split('. ')[0]
    raise LostLoader(
      f'a loader process ended before its time ({reason}). Was there too little memory? The same '
      'command goes on from the last checkpoint; fewer data.workers need less.'
    ) from None


def _begin_worker() -> None:
  """Sets how a loader process ends.

  Signals reach every process of a terminal or a job, but the main process needs batches until it
  has saved its state: the loader lives on for a while. It ends with a main process that is killed.
  """
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  signal.signal(signal.SIGTERM, lambda *_: _exit_later(GRACE_SECONDS))
  threading.Thread(target=_end_with_parent, daemon=True).start()


def _exit_later(seconds: float) -> None:
  timer = threading.Timer(seconds, os._exit, [1])
  timer.daemon = True
  timer.start()


def _end_with_parent() -> None:
  parent = multiprocessing.parent_process()
  assert parent is not None
  parent.join()
  os._exit(1)
