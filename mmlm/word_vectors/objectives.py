"""Word vectors: skip-gram and CBOW with negative sampling (Mikolov et al. 2013), with pieces of words (Bojanowski et al. 2017), and GloVe
(Pennington et al. 2014). Their tables are large and a text touches few rows at a time, so that these classes do not give a loss to be
differentiated but the gradients of rows (word_vectors/sparse_step.py).

Axes: V words, R rows of the inputs (V, and buckets of pieces), D width; of one update: G rows of text, T words of a row, W window,
H = T + 2 W, K negatives of a row, P pieces, B pairs.

What differs from word2vec's code, where every pair is an update by itself:
  - An update is that of all pairs of G T words together: the sum of their gradients, at the parameters before it.
    Words that stand in many of them would overshoot: their gradients are scaled down (`limit`).
  - K negatives are drawn for a row, stratified over the batch, and serve all of its pairs, each with the weight negatives / K: the expected
    gradient is the same, and all products are matrix products. A negative that happens to be the word that is predicted counts as one.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mmlm.config import HEAD_CLASSES


class RowGradients(NamedTuple):
  """What an update adds up: for each table, rows of it [n] and their gradients [n, D]; and sum and number of the losses."""

  rows: dict
  gradients: dict
  loss: jax.Array
  weight: jax.Array


@dataclass(frozen=True, kw_only=True)
class NegativeSampling:
  """Options of `SkipGram` and `Cbow`; the batch is that of word_vectors/context_windows.py."""

  window: int = 5
  negatives: int = 5  # a pair
  subsample: float = 1e-3  # share of the text from which on a word is left out at times; 0 = never
  power: float = 0.75  # negatives are drawn by count^power
  row: int = 16  # words that share their negatives (T)
  shared: int = 16  # negatives that they share (K)
  micro_batch: int = 256  # words of an update
  limit: float = 3.0  # rate times expected pairs of a word in an update, beyond which its gradients are scaled down; 0 = never
  shortest: int = 3  # letters of pieces of words, with the signs of its two ends
  longest: int = 0  # 0 = no pieces, a word is its own vector alone
  buckets: int = 2000000  # pieces are numbered by their hash modulo this

  optimizer = 'sgd'

  @property
  def pairs(self) -> float:
    """Gradients that a word has from those around it, on average."""
    return self.window + 1.0

  def init(self, key, words: int, rows: int, dim: int) -> dict:
    """Inputs [R, D] evenly within 1 / 2D of 0 as in word2vec (with pieces, within 1 / D as in fastText), outputs [V, D] of zeros."""
    bound = 1 / dim if self.longest else 0.5 / dim
    inputs = jax.random.uniform(key, (rows, dim), minval=-bound, maxval=bound)
    return {'inputs': inputs, 'outputs': jnp.zeros((words, dim))}

  def gradients(self, params: dict, batch: dict) -> RowGradients:
    inputs = params['inputs']
    outputs = params['outputs']
    around, spread = self._inputs(inputs, batch)  # [G, H, D]
    targets = batch['targets']
    negatives = batch['negatives']
    # [G, T, D], [G, K, D]
    wanted = outputs[targets]
    others = outputs[negatives]
    d_around, d_wanted, d_others, loss, weight = self.of_rows(
      around, wanted, others, _windows(batch, self.window)
    )
    if 'scales' in batch:
      d_around = d_around * batch['scales'][..., None]
      d_others = d_others * batch['negative_scales'][..., None]
      d_wanted *= batch['scales'][:, self.window : self.window + self.row, None]
    d_outputs = jnp.concatenate([_flat(d_wanted), _flat(d_others)])
    rows = jnp.concatenate([targets.reshape(-1), negatives.reshape(-1)])
    input_rows, d_inputs = spread(d_around)
    return RowGradients(
      {'inputs': input_rows, 'outputs': rows},
      {'inputs': d_inputs, 'outputs': d_outputs},
      loss,
      weight,
    )

  def prepare(self, batch: dict) -> dict:
    """With the words that are predicted, [M, G, T]."""
    words = batch['words']
    batch = {
      name: value
      for name, value in batch.items()
      if name != 'weight' and not (name == 'words' and 'inside' in batch)
    }
    return batch | {'targets': words[..., self.window : self.window + self.row]}

  def _inputs(self, table, batch):
    """Vectors of the words of the rows [G, H, D], and what spreads their gradients onto rows of the table."""
    if 'inside' not in batch:
      words = batch['words']
      return table[words], lambda gradient: (words.reshape(-1), _flat(gradient))
    inside = batch['inside']
    pieces = batch['pieces']
    owner = batch['owner']
    number = inside.size
    sums = jax.ops.segment_sum(table[pieces], owner, number + 1, indices_are_sorted=True)
    counts = jax.ops.segment_sum(jnp.ones(len(owner)), owner, number + 1, indices_are_sorted=True)
    means = sums / jnp.maximum(counts, 1)[:, None]

    def spread(gradient):
      of_words = jnp.zeros_like(means).at[inside.reshape(-1)].add(_flat(gradient))
      # fastText's code adds the gradient of the mean to each of its parts, not 1 / n of it.
      return pieces, of_words[owner]

    return means[inside], spread


@dataclass(frozen=True, kw_only=True)
class SkipGram(NegativeSampling):
  """Each word of a window predicts the word in its middle, a pair each."""

  def of_rows(self, around, wanted, others, windows):
    """Gradients of the loss by the vectors around [G, H, D], wanted [G, T, D] and drawn [G, K, D]; its sum and the pairs."""
    pairs = windows.sum(1)  # [G, H]: those of each word around
    hits = jnp.einsum('ghd,gtd->gth', around, wanted)
    misses = jnp.einsum('ghd,gkd->ghk', around, others)
    share = (self.negatives / self.shared) * pairs[..., None]
    d_hits = (jax.nn.sigmoid(hits) - 1) * windows
    d_misses = jax.nn.sigmoid(misses) * share
    d_around = jnp.einsum('gth,gtd->ghd', d_hits, wanted) + jnp.einsum(
      'ghk,gkd->ghd', d_misses, others
    )

    def loss():
      return (jax.nn.softplus(-hits) * windows).sum() + (jax.nn.softplus(misses) * share).sum()

    return (
      d_around,
      jnp.einsum('gth,ghd->gtd', d_hits, around),
      jnp.einsum('ghk,ghd->gkd', d_misses, around),
      loss(),
      pairs.sum(),
    )


@dataclass(frozen=True, kw_only=True)
class Cbow(NegativeSampling):
  """The mean of a window predicts the word in its middle."""

  def of_rows(self, around, wanted, others, windows):
    """The same as of `SkipGram`."""
    sizes = windows.sum(2, keepdims=True)
    mean = windows / jnp.maximum(sizes, 1)  # [G, T, H]
    there = sizes[..., 0] > 0
    middle = jnp.einsum('gth,ghd->gtd', mean, around)
    hits = (middle * wanted).sum(-1)
    misses = jnp.einsum('gtd,gkd->gtk', middle, others)
    share = (self.negatives / self.shared) * there[..., None]
    d_hits = ((jax.nn.sigmoid(hits) - 1) * there)[..., None]
    d_misses = jax.nn.sigmoid(misses) * share
    d_middle = d_hits * wanted + jnp.einsum('gtk,gkd->gtd', d_misses, others)

    def loss():
      return (jax.nn.softplus(-hits) * there).sum() + (jax.nn.softplus(misses) * share).sum()

    d_others = jnp.einsum('gtk,gtd->gkd', d_misses, middle)
    # word2vec's code, and gensim's, add the gradient of the mean to each of its words, not 1 / n of it.
    return (
      jnp.einsum('gth,gtd->ghd', windows, d_middle),
      d_hits * middle,
      d_others,
      loss(),
      there.sum(),
    )


def _windows(batch: dict, window: int):
  """[G, T, H] float32: 1 where a word of the row belongs to the window of another."""
  row = batch['left'].shape[1]
  distance = jnp.arange(row + 2 * window) - window - jnp.arange(row)[:, None]  # [T, H]
  left = batch['left'][..., None]
  right = batch['right'][..., None]
  return ((distance != 0) & (-distance <= left) & (distance <= right)).astype(jnp.float32)


def _flat(x):
  return x.reshape(-1, x.shape[-1])


@dataclass(frozen=True, kw_only=True)
class Glove:
  """Weighted least squares on the logarithm of co-occurrences (eq. 8); the batch is that of word_vectors/cooccurrence.py.

  A row holds the vector and, behind it, the bias. The vector of a word is the sum of both of its tables (4.2).
  """

  window: int = 10
  x_max: float = 100.0  # co-occurrence from which on a pair has the weight 1
  power: float = 0.75
  micro_batch: int = 8192  # pairs of an update: small ones cost more, the tables are copied in each

  optimizer = 'adagrad'

  def init(self, key, words: int, rows: int, dim: int) -> dict:
    """Both tables [V, D + 1] evenly within 1 / 2 (D + 1) of 0, as in the code of its authors."""

    def draw(key):
      return jax.random.uniform(key, (words, dim + 1), minval=-0.5, maxval=0.5) / (dim + 1)

    return dict(zip(('inputs', 'outputs'), map(draw, jax.random.split(key))))

  def prepare(self, batch: dict) -> dict:
    return {name: value for name, value in batch.items() if name != 'weight'}

  def gradients(self, params: dict, batch: dict) -> RowGradients:
    rows = {'inputs': batch['rows'], 'outputs': batch['columns']}
    left, right = (params[name][rows[name]] for name in rows)  # [B, D + 1]
    values = batch['values']
    there = values > 0
    bias = jnp.arange(left.shape[1]) == left.shape[1] - 1
    of_left = jnp.where(bias, 1.0, right)
    of_right = jnp.where(bias, 1.0, left)
    error = (
      (left * of_left).sum(-1)
      + right[:, -1]
      - jnp.log(
        jnp.where(
          there,
          values,
          1.0,
        )
      )
    )
    weights = jnp.minimum(1.0, values / self.x_max) ** self.power  # 0 for what only fills
    scaled = (weights * error)[:, None]
    return RowGradients(
      rows,
      {'inputs': scaled * of_left, 'outputs': scaled * of_right},
      0.5 * (weights * error**2).sum(),
      there.sum(),
    )


WORD_VECTORS = {'skip_gram': SkipGram, 'cbow': Cbow, 'glove': Glove}
HEAD_CLASSES.update(WORD_VECTORS)
