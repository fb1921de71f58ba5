"""Words and their windows as batches, for skip-gram and CBOW (Mikolov et al. 2013).

A batch is a pure function of (seed, number of the batch).

Axes: M updates of a batch, G rows of an update, T words of a row, W the widest window,
H = T + 2 W words of a row with its context, K negatives of a row, V words of the vocabulary,
N words of the text, S sentences, P subwords of an update.
"""

import functools
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmlm.word_vectors.objectives import LARGEST_WINDOW, NegativeSampling
from mmlm.word_vectors.vocabulary import Corpus

# An update's list of subwords is padded to a multiple of this, so that few shapes are compiled.
_SUBWORDS_MULTIPLE = 4096


class Subwords(NamedTuple):
  """The rows of the table of inputs that make up each word of the vocabulary.

  Attributes:
    rows: of all words, one word after another.
    starts: [V + 1], where those of each word begin.
  """

  rows: NDArray
  starts: NDArray


class Epoch(NamedTuple):
  """The words of a text that one epoch trains on."""

  ids: NDArray  # [N']
  before: NDArray  # [N'] uint8: words of its sentence before each, 255 at most
  after: NDArray  # [N'] uint8: and after each


class WindowPlan:
  """The batches of a text: batch number -> that number, from which `WindowLoader` makes the batch.

  Each epoch draws anew which occurrences of frequent words are dropped; the sentences come in the
  order of the text, as in word2vec's code.

  Args:
    counts: [V].
    subsample: the share of the text above which occurrences of a word are dropped; 0 = never. A
      word of share f is kept with probability (sqrt(f / t) + 1) t / f: the formula of word2vec's
      code.
    batch_size: words of a batch, of those that are kept.
  """

  def __init__(
    self,
    corpus: Corpus,
    counts: NDArray,
    subsample: float,
    batch_size: int,
    seed: int,
  ):
    self.corpus = corpus
    self.batch_size = batch_size
    self.seed = seed
    self.keep_probability = _keep_probability(counts, subsample)
    words = self.keep_probability[corpus.ids].sum()
    if subsample:
      # Room for draws above the expectation: every epoch has the same number of batches.
      words += 4 * words**0.5
    self.steps_per_epoch = int(-(-words // batch_size))
    self.examples_per_step = len(corpus.ids) / self.steps_per_epoch

  def __len__(self) -> int:
    return self.steps_per_epoch

  def __getitem__(self, number: int) -> int:
    return number

  # A plan lives as long as the process; threads may be in two epochs at once.
  @functools.lru_cache(2)  # noqa: B019
  def epoch(self, number: int) -> Epoch:
    """Returns the words that an epoch keeps."""
    rng = np.random.default_rng((self.seed, number))
    ids, starts = self.corpus
    sentences = len(starts) - 1
    kept = rng.random(len(ids), np.float32) < self.keep_probability[ids]
    ids = ids[kept]
    sentence = np.repeat(np.arange(sentences), np.diff(starts))[kept]
    ends = np.cumsum(np.bincount(sentence, minlength=sentences))  # [S]
    begins = np.concatenate([[0], ends[:-1]])
    places = np.arange(len(ids))
    before = places - begins[sentence]
    after = ends[sentence] - 1 - places
    return Epoch(ids, _as_bytes(before), _as_bytes(after))


def _keep_probability(counts: NDArray, subsample: float) -> NDArray:
  if not subsample:
    return np.ones(len(counts))
  ratio = counts / max(counts.sum(), 1) / subsample
  return np.minimum(1, (np.sqrt(ratio) + 1) / ratio)


def _as_bytes(distances: NDArray) -> NDArray:
  return np.minimum(distances, LARGEST_WINDOW).astype(np.uint8)


class WindowLoader:
  """Makes the batches of a `WindowPlan`, the flat dict of arrays that `NegativeSampling` reads.

    words      [M, G, H] int32    rows of T words with the W words before and after them
    left,right [M, G, T] uint8    how many words before and after are in the window of each: evenly
                                  drawn from 1..W, cut at the ends of the sentence
    negatives  [M, G, K] int32    words drawn by count^power, for all pairs of a row
    scales     [M, G, H] float32  of the words' gradients; absent where all are 1
    negative_scales [M, G, K]     of the negatives' gradients
    weight     [1] float32        words of the text that a batch stands for
    with subwords also
    distinct   [M, G, H] int32    which of the distinct words of the update each is
    pieces     [M, P] int32       rows of the table of inputs that make up the distinct words of the
                                  update, one word after another
    owner      [M, P] int32       the distinct word that each row belongs to; G H for padding

  Args:
    counts: [V].
    pull: how far a word that occurs once in an update moves its vectors, as a multiple of a pair's
      gradient (learning rate times pairs). The gradients of words that occur so often that they
      would move by more than `options.limit`, on average, are scaled down to it. 0 = never.
  """

  finish = None

  def __init__(
    self,
    plan: WindowPlan,
    counts: NDArray,
    options: NegativeSampling,
    subwords: Subwords | None = None,
    pull: float = 0.0,
  ):
    self.plan = plan
    self.options = options
    self.subwords = subwords
    shares = counts**options.power
    shares = shares / shares.sum()
    self.bounds = np.cumsum(shares)
    kept = counts * plan.keep_probability
    most_frequent = np.maximum(kept / kept.sum(), shares)
    expected_pull = pull * options.micro_batch * most_frequent
    self.scales = np.ones(1)
    if options.limit:
      scales = np.minimum(1, options.limit / np.maximum(expected_pull, 1e-9))
      self.scales = scales.astype(np.float32)

  def __call__(
    self,
    number: int,
    _,
  ) -> dict[str, NDArray]:
    """Returns the batch of a number."""
    plan = self.plan
    options = self.options
    rng = np.random.default_rng((plan.seed, 1, number))
    epoch_number, position = divmod(number, plan.steps_per_epoch)
    epoch = plan.epoch(epoch_number)
    start = position * plan.batch_size
    stop = start + plan.batch_size
    row = options.row
    margin = options.window
    rows_of_update = options.micro_batch // row
    words = _padded(epoch.ids, start - margin, stop + margin)
    rows = np.lib.stride_tricks.sliding_window_view(words, row + 2 * margin)[::row]  # [M G, H]
    window = rng.integers(1, options.window + 1, plan.batch_size, np.uint8)
    left = np.minimum(window, _padded(epoch.before, start, stop))
    right = np.minimum(window, _padded(epoch.after, start, stop))
    negatives = self._draw_negatives(rng, len(rows) * options.shared)
    batch = {
      'words': rows.reshape(-1, rows_of_update, rows.shape[1]),
      'left': left.reshape(-1, rows_of_update, row),
      'right': right.reshape(-1, rows_of_update, row),
      'negatives': negatives.reshape(-1, rows_of_update, options.shared),
      'weight': np.array([plan.examples_per_step], np.float32),
    }
    if self.scales.min() < 1:
      batch['scales'] = self.scales[batch['words']]
      batch['negative_scales'] = self.scales[batch['negatives']]
    if self.subwords is not None:
      batch |= _subwords_of_updates(batch['words'], self.subwords)
    return batch

  def _draw_negatives(
    self,
    rng: np.random.Generator,
    size: int,
  ) -> NDArray:
    """Draws words by count^power, stratified: one from each of `size` equal shares of it.

    They come in random order. Each is distributed as before, but a batch holds every word about as
    often as expected: few negatives serve many pairs, and chance in their numbers would be noise in
    the vectors.
    """
    places = (rng.permutation(size) + rng.random(size)) / size
    words = np.searchsorted(self.bounds, places, 'right')
    # The last bound may be a little below 1.
    return np.minimum(words, len(self.bounds) - 1).astype(np.int32)


def _subwords_of_updates(words: NDArray, subwords: Subwords) -> dict[str, NDArray]:
  """Returns 'distinct', 'pieces' and 'owner' of words [M, G, H]."""
  distinct = []
  pieces = []
  owners = []
  for of_update in words:
    vocabulary, inverse = np.unique(of_update, return_inverse=True)
    begins = subwords.starts[vocabulary]
    lengths = subwords.starts[vocabulary + 1] - begins
    shifts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    offsets = np.repeat(begins - shifts, lengths)
    distinct.append(inverse.reshape(of_update.shape))
    pieces.append(subwords.rows[np.arange(len(offsets)) + offsets])
    owners.append(np.repeat(np.arange(len(vocabulary)), lengths))
  longest = max(len(rows) for rows in pieces)
  length = -(-longest // _SUBWORDS_MULTIPLE) * _SUBWORDS_MULTIPLE
  return {
    'distinct': np.stack(distinct).astype(np.int32),
    'pieces': _stacked(pieces, length, filler=0),
    'owner': _stacked(owners, length, filler=words[0].size),
  }


def _stacked(
  lists: list[NDArray],
  length: int,
  filler: int,
) -> NDArray:
  """Returns [len(lists), length] int32, the ends filled up."""
  stacked = np.full((len(lists), length), filler, np.int32)
  for line, values in zip(stacked, lists):
    line[: len(values)] = values
  return stacked


def _padded(
  values: NDArray,
  start: int,
  stop: int,
) -> NDArray:
  """Returns values[start:stop], with zeros outside of the array."""
  inside = values[max(start, 0) : max(stop, 0)]
  before = max(0, -start)
  return np.pad(inside, (before, stop - start - before - len(inside)))
