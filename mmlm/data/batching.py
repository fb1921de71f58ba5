"""Which examples stand in which batch: length buckets with fixed shapes, as a pure function of (seed, epoch).

Because a plan is pure, the position in the data is one number, the count of batches consumed: it does not depend on how
many workers load them, and the ids in any batch can be told afterwards.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from mmlm.utils.errors import UserError


class Batch(NamedTuple):
  indices: np.ndarray  # [n] examples, n <= size: the rest is filled with weight 0
  length: int  # the bucket: padded length of texts and targets
  size: int  # rows


class TrainPlan:
  """Batch number -> Batch, for an endless stream of epochs.

  Each epoch is shuffled, cut into buckets and batches, and the batches are shuffled. What does not fill a batch of its
  bucket goes with the next longer one, so that an epoch has one partial batch at most; every example counts once in
  each epoch.

  Args:
    lengths: [N] tokens of each example.
    batch_size: rows of a batch; with `batch_tokens`, what the number of rows is a multiple of.
    buckets: increasing lengths; the last holds the longest example.
    batch_tokens: padded tokens of a batch: short buckets have more rows. 0 gives every batch batch_size rows.
  """

  def __init__(
    self, lengths: np.ndarray, batch_size: int, buckets: tuple, seed: int, batch_tokens: int = 0
  ):
    self.buckets = np.asarray(buckets)
    self.seed = seed
    self.sizes = [
      max(1, batch_tokens // length // batch_size) * batch_size if batch_tokens else batch_size
      for length in buckets
    ]
    self.bucket_of = _bucket_of(lengths, self.buckets)
    self.steps_per_epoch = len(self._shuffled(0))  # the same in every epoch
    self.examples_per_step = len(lengths) / self.steps_per_epoch

  def __getitem__(self, number: int) -> Batch:
    epoch, position = divmod(number, self.steps_per_epoch)
    return self._shuffled(epoch)[position]

  @functools.lru_cache(2)  # noqa: B019 a plan lives as long as the process; threads may be in two epochs at once
  def _shuffled(self, epoch: int) -> list[Batch]:
    rng = np.random.default_rng((self.seed, epoch))
    order = rng.permutation(len(self.bucket_of))
    batches = []
    pool = order[:0]
    for bucket, (length, size) in enumerate(zip(self.buckets, self.sizes)):
      pool = np.concatenate([pool, order[self.bucket_of[order] == bucket]])
      if length == self.buckets[-1]:
        whole = len(pool)
      else:
        whole = len(pool) // size * size
      batches += [
        Batch(
          pool[i : min(i + size, whole)],
          int(length),
          size,
        )
        for i in range(0, whole, size)
      ]
      pool = pool[whole:]
    return [batches[i] for i in rng.permutation(len(batches))]


def eval_plan(lengths: np.ndarray, batch_size: int, buckets: tuple) -> list[Batch]:
  """Every example once, the short ones first."""
  bucket_of = _bucket_of(lengths, buckets)
  order = np.argsort(lengths, kind='stable')
  parts = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
  return [Batch(part, int(buckets[bucket_of[part].max()]), batch_size) for part in parts]


def part_of(batch: Batch, number: int, parts: int) -> tuple[Batch, int]:
  """The rows of one of several equal parts of a batch, filled up so that it divides, and the number of their first."""
  rows = -(-batch.size // parts)
  return Batch(
    batch.indices[number * rows : (number + 1) * rows], batch.length, rows
  ), number * rows


def _bucket_of(lengths, buckets) -> np.ndarray:
  found = np.searchsorted(buckets, lengths)
  if not len(lengths) or found.max() >= len(buckets):
    raise UserError(
      f'{len(lengths)} examples, the longest of {max(lengths, default=0)} tokens, in buckets {tuple(buckets)}.'
    )
  return found


def pad(rows: list, length: int, count: int, value: int = 0) -> tuple[np.ndarray, np.ndarray]:
  """Lists of token ids or labels -> (values [count, length] int32 or float32, mask [count, length] bool)."""
  ids = np.full(
    (count, length),
    value,
    np.float32
    if isinstance(value, float) or any(isinstance(v, float) for row in rows for v in row)
    else np.int32,
  )
  mask = np.zeros((count, length), bool)
  for i, row in enumerate(rows):
    ids[i, : len(row)], mask[i, : len(row)] = row, True
  return ids, mask


def stack(
  rows: list[np.ndarray | None], count: int, like: Callable
) -> tuple[np.ndarray, np.ndarray]:
  """Arrays of one shape, None where an example lacks the modality -> (values [count, ...], present [count] bool).

  `like()` gives an array of that kind, asked for where no row is one.
  """
  found = {i: row for i, row in enumerate(rows) if row is not None}
  if found:
    first = next(iter(found.values()))
  else:
    first = like()
  if others := [row.shape for row in found.values() if row.shape != first.shape]:
    raise UserError(
      f'arrays of shapes {first.shape} and {others[0]} in one batch: add a resize to the ops.'
    )
  values = np.zeros((count, *first.shape), first.dtype)
  present = np.zeros(count, bool)
  for i, row in found.items():
    values[i], present[i] = row, True
  return values, present


def pad_features(
  rows: list[np.ndarray | None], length: int, count: int, like: Callable
) -> tuple[np.ndarray, np.ndarray]:
  """Vectors [C] or sequences [S, C], None where an example has none -> (values [count, length, C] float32, mask [count, length])."""
  found = [row for row in rows if row is not None] or [like()]
  values = np.zeros((count, length, found[0].shape[-1]), np.float32)
  mask = np.zeros((count, length), bool)
  for i, row in enumerate(rows):
    if row is not None:
      row = np.atleast_2d(row)
      if len(row) > length:
        raise UserError(
          f'{len(row)} rows of features, {length} were counted: remove rows-*.json from data.dir, where counts are remembered.'
        )
      values[i, : len(row)], mask[i, : len(row)] = row, True
  return values, mask
