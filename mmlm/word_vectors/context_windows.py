"""Words and their windows as batches, for skip-gram and CBOW (Mikolov et al. 2013): a pure function of (seed, number of the batch).

Axes: M updates of a batch, G rows of an update, T words of a row, W the widest window, H = T + 2 W a row with what stands around it,
K negatives of a row, V words of the vocabulary, N words of the text, S sentences, P pieces of words of an update.
"""

import functools

import numpy as np

from mmlm.word_vectors.vocabulary import Corpus

_FARTHEST = 255  # reaches are bytes
_PIECES = (
  4096  # an update's list of pieces is as long as the next multiple: few shapes are compiled
)


class WindowPlan:
  """Batch number -> that number; what it holds is told by `WindowLoader`. Each epoch draws anew which frequent words are left out; the
  sentences come in the order of the text, as word2vec's code reads it.

  Args:
    counts: [V].
    subsample: the share of the text from which on a word is left out at times; 0 = never. It stays with probability (sqrt(f / t) + 1) t / f,
      where f is its share: the formula of word2vec's code.
    batch_size: words of a batch, of those that stay.
  """

  def __init__(
    self, corpus: Corpus, counts: np.ndarray, subsample: float, batch_size: int, seed: int
  ):
    self.corpus = corpus
    self.batch_size = batch_size
    self.seed = seed
    if subsample:
      ratio = counts / max(counts.sum(), 1) / subsample
    else:
      ratio = np.ones(len(counts))
    if subsample:
      self.stays = np.minimum(1, (np.sqrt(ratio) + 1) / ratio)
    else:
      self.stays = ratio
    expected = self.stays[corpus.ids].sum()
    # Room for what may be drawn above the expectation: the number of batches is the same in every epoch.
    self.steps_per_epoch = int(-(-(expected + 4 * expected**0.5 * bool(subsample)) // batch_size))
    self.examples_per_step = len(corpus.ids) / self.steps_per_epoch

  def __len__(self):
    return self.steps_per_epoch

  def __getitem__(self, number: int) -> int:
    return number

  @functools.lru_cache(2)  # noqa: B019 a plan lives as long as the process; threads may be in two epochs at once
  def epoch(self, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(words [N'] that stay, how many of their sentence stand before each, and after each)."""
    rng, (ids, starts) = np.random.default_rng((self.seed, number)), self.corpus
    sentences = len(starts) - 1
    stay = rng.random(len(ids), np.float32) < self.stays[ids]
    ids = ids[stay]
    sentence = np.repeat(np.arange(sentences), np.diff(starts))[stay]
    last = np.cumsum(np.bincount(sentence, minlength=sentences))  # [S] where each ends
    places = np.arange(len(ids))
    ends = last[sentence]
    begins = np.concatenate([[0], last[:-1]])[sentence]

    def reach(distance):
      return np.minimum(distance, _FARTHEST).astype(np.uint8)

    return ids, reach(places - begins), reach(ends - 1 - places)


class WindowLoader:
  """Batches of a `WindowPlan`, as the flat dict of arrays that `mmlm.models.word_vectors` reads.

    words      [M, G, H] int32    rows of T words with the W words before and after them
    left,right [M, G, T] uint8    how many words before and after belong to the window of each: evenly drawn from 1..W, cut at the sentence's ends
    negatives  [M, G, K] int32    words drawn by count^power, for all pairs of a row, stratified over the batch
  scales     [M, G, H], negative_scales [M, G, K] float32    of the words' gradients; not there where all are 1
    weight     [1] float32        words of the text that a batch stands for
    with pieces of words also
    inside     [M, G, H] int32    which of the different words of the update each is
    pieces     [M, P] int32       rows of the table of inputs that make up the different words of the update, one word after another
    owner      [M, P] int32       the word that each row belongs to; G H for those that only fill

  Args:
    options: window, negatives (a pair), shared (K), row (T), micro_batch (words of an update, G T), power.
    pieces: (rows one word after another, where those of each begin), or None.
    pull: what a word that stands once in an update moves its vectors by, as a multiple of a pair's gradient (rate times pairs); where words
      that stand often would be moved by more than `options.limit`, on average, their gradients are scaled down to it. 0 = never.
  """

  finish = None

  def __init__(
    self,
    plan: WindowPlan,
    counts: np.ndarray,
    options,
    pieces: tuple | None = None,
    pull: float = 0.0,
  ):
    self.plan = plan
    self.options = options
    self.pieces = pieces
    shares = counts**options.power
    shares = shares / shares.sum()
    self.bounds = np.cumsum(shares)
    kept = counts * plan.stays
    often = pull * options.micro_batch * np.maximum(kept / kept.sum(), shares)
    if options.limit:
      self.scales = np.minimum(1, options.limit / np.maximum(often, 1e-9)).astype(np.float32)
    else:
      self.scales = np.ones(1)

  def __call__(self, number: int, _) -> dict:
    plan = self.plan
    o = self.options
    rng = np.random.default_rng((plan.seed, 1, number))
    epoch, position = divmod(number, plan.steps_per_epoch)
    ids, before, after = plan.epoch(epoch)
    start = position * plan.batch_size
    size = plan.batch_size

    def cut(values, margin):
      return _padded(values, start - margin, start + size + margin)

    rows = np.lib.stride_tricks.sliding_window_view(cut(ids, o.window), o.row + 2 * o.window)[
      :: o.row
    ]  # [M G, H]
    reach = rng.integers(1, o.window + 1, size, np.uint8)
    shape = (-1, o.micro_batch // o.row)
    batch = {
      'words': rows.reshape(*shape, rows.shape[1]),
      'left': np.minimum(reach, cut(before, 0)).reshape(*shape, o.row),
      'right': np.minimum(reach, cut(after, 0)).reshape(*shape, o.row),
      'negatives': self._drawn(rng, len(rows) * o.shared).reshape(*shape, o.shared),
      'weight': np.array([plan.examples_per_step], np.float32),
    }
    if self.scales.min() < 1:
      batch |= {
        'scales': self.scales[batch['words']],
        'negative_scales': self.scales[batch['negatives']],
      }
    if self.pieces is None:
      return batch
    return self._with_pieces(batch)

  def _drawn(self, rng, size: int) -> np.ndarray:
    """Stratified: one from each of `size` equal shares of the distribution, in random order. Each is drawn as before, but a batch holds every
    word about as often as expected: few negatives serve many pairs, and chance in their numbers is noise in the vectors.
    """
    places = (rng.permutation(size) + rng.random(size)) / size
    return np.minimum(np.searchsorted(self.bounds, places, 'right'), len(self.bounds) - 1).astype(
      np.int32
    )  # the last bound may be a little below 1

  def _with_pieces(self, batch: dict) -> dict:
    words = batch['words']
    table, starts = self.pieces
    insides = []
    lists = []
    for update in words:
      different, inside = np.unique(update, return_inverse=True)
      lengths = starts[different + 1] - starts[different]
      offsets = np.repeat(
        starts[different] - np.concatenate([[0], np.cumsum(lengths)[:-1]]), lengths
      )
      insides.append(inside.reshape(update.shape))
      lists.append(
        (
          table[np.arange(len(offsets)) + offsets],
          np.repeat(np.arange(len(different)), lengths),
        )
      )
    length = -(-max(len(rows) for rows, _ in lists) // _PIECES) * _PIECES

    def fill(values, filler):
      return np.stack(
        [np.pad(v, (0, length - len(v)), constant_values=filler) for v in values]
      ).astype(np.int32)

    return batch | {
      'inside': np.stack(insides).astype(np.int32),
      'pieces': fill([rows for rows, _ in lists], 0),
      'owner': fill([owner for _, owner in lists], words[0].size),
    }


def _padded(values: np.ndarray, start: int, stop: int) -> np.ndarray:
  """values[start:stop], with zeros where there are none."""
  inside = values[max(start, 0) : max(stop, 0)]
  before = max(0, -start)
  return np.pad(inside, (before, stop - start - before - len(inside)))
