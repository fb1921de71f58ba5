"""Batches of length buckets with fixed shapes, a pure function of (seed, epoch).

Because a plan is pure, the position in the data is one number, the count of batches consumed. It
does not depend on the number of loader processes, and the ids in any batch can be listed
afterwards.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from mmlm.utils.errors import UserError

Padded = tuple[np.ndarray, np.ndarray]  # (values, mask)


class Batch(NamedTuple):
  """The examples of one batch."""

  indices: np.ndarray  # [n] examples, n <= size; the others have weight 0
  length: int  # padded length of texts and targets: that of the bucket
  size: int  # examples that the arrays of the batch have room for


class TrainPlan:
  """Batch number -> Batch, for an endless stream of epochs.

  Each epoch is shuffled, divided into buckets and batches, and the batches are shuffled. Examples
  that do not fill a batch of their bucket go into the next longer one, so that an epoch has at most
  one partial batch; every example counts once in each epoch.

  Args:
    lengths: [N] tokens of each example.
    batch_size: examples of a batch; with `batch_tokens`, what that number is a multiple of.
    buckets: increasing lengths; the last holds the longest example.
    batch_tokens: padded tokens of a batch, so that short buckets have more examples; 0 gives every
      batch batch_size examples.
  """

  def __init__(
    self,
    lengths: np.ndarray,
    batch_size: int,
    buckets: Sequence[int],
    seed: int,
    batch_tokens: int = 0,
  ):
    self.buckets = np.asarray(buckets)
    self.seed = seed
    self.sizes = [_bucket_size(length, batch_size, batch_tokens) for length in buckets]
    self.bucket_of = _bucket_of(lengths, self.buckets)
    self.steps_per_epoch = len(self._shuffled(0))  # the same in every epoch
    self.examples_per_step = len(lengths) / self.steps_per_epoch

  def __getitem__(self, number: int) -> Batch:
    epoch, position = divmod(number, self.steps_per_epoch)
    return self._shuffled(epoch)[position]

  # Two epochs, as threads may be in two at once; a plan lives as long as the process.
  @functools.lru_cache(2)  # noqa: B019
  def _shuffled(self, epoch: int) -> list[Batch]:
    rng = np.random.default_rng((self.seed, epoch))
    order = rng.permutation(len(self.bucket_of))
    batches = []
    pool = order[:0]
    for bucket, (length, size) in enumerate(zip(self.buckets, self.sizes)):
      pool = np.concatenate([pool, order[self.bucket_of[order] == bucket]])
      taken = len(pool)
      if length != self.buckets[-1]:
        taken = len(pool) // size * size
      for start in range(0, taken, size):
        indices = pool[start : min(start + size, taken)]
        batches.append(Batch(indices, int(length), size))
      pool = pool[taken:]
    return [batches[i] for i in rng.permutation(len(batches))]


def _bucket_size(
  length: int,
  batch_size: int,
  batch_tokens: int,
) -> int:
  """Returns the examples of a batch in the bucket of a length."""
  if not batch_tokens:
    return batch_size
  return max(1, batch_tokens // length // batch_size) * batch_size


def eval_plan(
  lengths: np.ndarray,
  batch_size: int,
  buckets: Sequence[int],
) -> list[Batch]:
  """Returns batches that have every example once, the short ones first."""
  bucket_of = _bucket_of(lengths, buckets)
  order = np.argsort(lengths, kind='stable')
  batches = []
  for start in range(0, len(order), batch_size):
    indices = order[start : start + batch_size]
    batches.append(Batch(indices, int(buckets[bucket_of[indices].max()]), batch_size))
  return batches


def part_of(
  batch: Batch,
  number: int,
  parts: int,
) -> tuple[Batch, int]:
  """Returns one of several equal parts of a batch, and the position of its first example.

  The batch is filled up to a multiple of `parts`.
  """
  size = -(-batch.size // parts)
  first = number * size
  return Batch(batch.indices[first : first + size], batch.length, size), first


def _bucket_of(lengths: np.ndarray, buckets: Sequence[int] | np.ndarray) -> np.ndarray:
  """Returns [N], the bucket of each example."""
  bucket_of = np.searchsorted(buckets, lengths)
  if not len(lengths) or bucket_of.max() >= len(buckets):
    longest = max(lengths, default=0)
    raise UserError(
      f'{len(lengths)} examples, the longest of {longest} tokens, in buckets {tuple(buckets)}.'
    )
  return bucket_of


def pad(
  columns: Sequence[Sequence],
  length: int,
  count: int,
  value: int | float = 0,
) -> Padded:
  """Pads lists of token ids or labels.

  Returns:
    (values [count, length] int32, or float32 if any is a float; mask [count, length] bool)
  """
  values = np.full((count, length), value, _dtype_of(columns, value))
  mask = np.zeros((count, length), bool)
  for i, column in enumerate(columns):
    values[i, : len(column)] = column
    mask[i, : len(column)] = True
  return values, mask


def _dtype_of(columns: Sequence[Sequence], value: int | float) -> type:
  if isinstance(value, float):
    return np.float32
  for column in columns:
    if any(isinstance(each, float) for each in column):
      return np.float32
  return np.int32


def stack(
  arrays: Sequence[np.ndarray | None], count: int, like: Callable[[], np.ndarray]
) -> Padded:
  """Stacks arrays of one shape, None for an example that lacks the modality.

  Args:
    like: returns an array of that kind; called if no example has one.

  Returns:
    (values [count, ...], present [count] bool)
  """
  present_arrays = {i: array for i, array in enumerate(arrays) if array is not None}
  first = next(iter(present_arrays.values()), None)
  if first is None:
    first = like()
  values = np.zeros((count, *first.shape), first.dtype)
  present = np.zeros(count, bool)
  for i, array in present_arrays.items():
    if array.shape != first.shape:
      raise UserError(
        f'arrays of shapes {first.shape} and {array.shape} in one batch: add a resize to the ops.'
      )
    values[i] = array
    present[i] = True
  return values, present


def pad_features(
  arrays: Sequence[np.ndarray | None], length: int, count: int, like: Callable[[], Any]
) -> Padded:
  """Pads vectors [C] or sequences [S, C], None for an example that lacks the modality.

  Args:
    like: returns features of that kind; called if no example has any.

  Returns:
    (values [count, length, C] float32, mask [count, length] bool)
  """
  first = next((array for array in arrays if array is not None), None)
  if first is None:
    first = like()
  values = np.zeros((count, length, first.shape[-1]), np.float32)
  mask = np.zeros((count, length), bool)
  for i, array in enumerate(arrays):
    if array is None:
      continue
    frames = np.atleast_2d(array)
    if len(frames) > length:
      raise UserError(
        f'{len(frames)} rows of features, {length} were counted: '
        'remove rows-*.json from data.dir, where counts are remembered.'
      )
    values[i, : len(frames)] = frames
    mask[i, : len(frames)] = True
  return values, mask
