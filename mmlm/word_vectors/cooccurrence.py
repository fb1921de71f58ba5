"""How often words occur near each other, as batches for GloVe (Pennington et al. 2014, 3).

A batch is a pure function of (seed, number of the batch).

Axes: V words, N words of the text, E pairs that occur, M updates of a batch, B pairs of an update.
"""

import functools
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from mmlm.word_vectors.vocabulary import Corpus

_BLOCK = 1 << 22  # words counted at once


class Cooccurrences(NamedTuple):
  """The pairs of words that occur together."""

  rows: NDArray  # [E] int32
  columns: NDArray  # [E] int32
  values: NDArray  # [E] float32: sums of 1 / distance


def count_cooccurrences(
  corpus: Corpus,
  size: int,
  window: int,
) -> Cooccurrences:
  """Counts all pairs of words at most `window` apart within a sentence, in both directions.

  A pair d words apart counts 1 / d.
  """
  ids, starts = corpus
  sentence = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
  total = sparse.csr_matrix((size, size))
  for low in range(0, len(ids), _BLOCK):
    for distance in range(1, window + 1):
      first = slice(low, min(low + _BLOCK, len(ids) - distance))
      second = slice(low + distance, low + _BLOCK + distance)
      same_sentence = sentence[first] == sentence[second]
      places = ids[first][same_sentence], ids[second][same_sentence]
      counts = np.full(len(places[0]), 1 / distance)
      total += sparse.csr_matrix((counts, places), (size, size))
  pairs = (total + total.T).tocoo()
  return Cooccurrences(
    rows=pairs.row.astype(np.int32),
    columns=pairs.col.astype(np.int32),
    values=pairs.data.astype(np.float32),
  )


class PairPlan:
  """The batches of pairs: batch number -> that number, from which `PairLoader` makes the batch.

  Each epoch goes through the pairs in another order.

  Args:
    words: of the text, which an epoch stands for.
  """

  def __init__(
    self,
    pairs: Cooccurrences,
    words: int,
    batch_size: int,
    seed: int,
  ):
    self.pairs = pairs
    self.batch_size = batch_size
    self.seed = seed
    self.steps_per_epoch = -(-len(pairs.values) // batch_size)
    self.examples_per_step = words / self.steps_per_epoch

  def __len__(self) -> int:
    return self.steps_per_epoch

  def __getitem__(self, number: int) -> int:
    return number

  # A plan lives as long as the process; threads may be in two epochs at once.
  @functools.lru_cache(2)  # noqa: B019
  def order(self, epoch: int) -> NDArray:
    """Returns the order of the pairs in an epoch, [E]."""
    return np.random.default_rng((self.seed, epoch)).permutation(len(self.pairs.values))


class PairLoader:
  """Makes the batches of a `PairPlan`.

    rows, columns [M, B] int32    the words of each pair
    values        [M, B] float32  how often they occur together; 0 for padding
    weight        [1] float32     words of the text that a batch stands for

  Args:
    update: pairs of an update (B).
  """

  finish = None

  def __init__(
    self,
    plan: PairPlan,
    update: int,
  ):
    self.plan = plan
    self.update = update

  def __call__(
    self,
    number: int,
    _,
  ) -> dict[str, NDArray]:
    """Returns the batch of a number."""
    epoch, position = divmod(number, self.plan.steps_per_epoch)
    size = self.plan.batch_size
    chosen = self.plan.order(epoch)[position * size : (position + 1) * size]
    batch = {}
    for name, values in self.plan.pairs._asdict().items():
      padded = np.pad(values[chosen], (0, size - len(chosen)))
      batch[name] = padded.reshape(-1, self.update)
    batch['weight'] = np.array([self.plan.examples_per_step], np.float32)
    return batch
