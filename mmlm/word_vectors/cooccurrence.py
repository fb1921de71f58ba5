"""How often words stand near each other, as batches for GloVe (Pennington et al. 2014, 3): a pure function of (seed, number of the batch).

Axes: V words, N words of the text, E pairs that occur, M updates of a batch, B pairs of an update.
"""

import functools
from typing import NamedTuple

import numpy as np
from scipy import sparse

from mmlm.word_vectors.vocabulary import Corpus

_BLOCK = 1 << 22  # words counted at once


class Cooccurrences(NamedTuple):
  rows: np.ndarray  # [E] int32
  columns: np.ndarray  # [E] int32
  values: np.ndarray  # [E] float32: sums of 1 / distance


def count_cooccurrences(corpus: Corpus, size: int, window: int) -> Cooccurrences:
  """Of all pairs at most `window` words apart within a sentence, on either side; a pair d words apart counts 1 / d."""
  ids, starts = corpus
  sentence = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
  total = sparse.csr_matrix((size, size))
  for low in range(0, len(ids), _BLOCK):
    for distance in range(1, window + 1):
      some = slice(low, min(low + _BLOCK, len(ids) - distance))
      others = slice(low + distance, low + _BLOCK + distance)
      together = sentence[some] == sentence[others]
      places = ids[some][together], ids[others][together]
      total += sparse.csr_matrix(
        (np.full(len(places[0]), 1 / distance), places),
        (size, size),
      )
  found = (total + total.T).tocoo()
  return Cooccurrences(
    found.row.astype(np.int32), found.col.astype(np.int32), found.data.astype(np.float32)
  )


class PairPlan:
  """Batch number -> that number; each epoch goes through the pairs in another order. `words`: of the text, which an epoch stands for."""

  def __init__(self, pairs: Cooccurrences, words: int, batch_size: int, seed: int):
    self.pairs = pairs
    self.batch_size = batch_size
    self.seed = seed
    self.steps_per_epoch = -(-len(pairs.values) // batch_size)
    self.examples_per_step = words / self.steps_per_epoch

  def __len__(self):
    return self.steps_per_epoch

  def __getitem__(self, number: int) -> int:
    return number

  @functools.lru_cache(2)  # noqa: B019 a plan lives as long as the process; threads may be in two epochs at once
  def order(self, epoch: int) -> np.ndarray:
    return np.random.default_rng((self.seed, epoch)).permutation(len(self.pairs.values))


class PairLoader:
  """Batches of a `PairPlan`: rows, columns [M, B] int32 and values [M, B] float32, 0 for what only fills; weight [1], the words of the text
  that a batch stands for.
  """

  finish = None

  def __init__(self, plan: PairPlan, update: int):
    self.plan = plan
    self.update = update

  def __call__(self, number: int, _) -> dict:
    epoch, position = divmod(number, self.plan.steps_per_epoch)
    size = self.plan.batch_size
    chosen = self.plan.order(epoch)[position * size : (position + 1) * size]

    def fill(values):
      return np.pad(values[chosen], (0, size - len(chosen))).reshape(-1, self.update)

    batch = {name: fill(values) for name, values in self.plan.pairs._asdict().items()}
    return batch | {'weight': np.array([self.plan.examples_per_step], np.float32)}
