"""Objectives of word vectors, as gradients of the rows of embedding tables that an update touches.

Skip-gram and CBOW with negative sampling (Mikolov et al. 2013), with subwords (Bojanowski et al.
2017), and GloVe (Pennington et al. 2014). The tables are large and a text touches few rows at a
time, so these classes give no loss to be differentiated but the gradients of rows
(sparse_step.py).

Axes: V words, R rows of the inputs (V, and buckets of subwords), D width; of one update: G rows of
text, T words of a row, W window, H = T + 2 W words of a row with its context, K negatives of a row,
P subwords, B pairs, n gradients.

Differences from word2vec's code, where every pair is an update by itself:
  - An update is that of all pairs of G T words together: the sum of their gradients, at the
    parameters before it. Words that occur in many of them would overshoot: their gradients are
    scaled down (`limit`).
  - K negatives are drawn for a row, stratified over the batch, and serve all of its pairs, each
    with the weight negatives / K: the expected gradient is the same, and all products are matrix
    products. A negative that happens to be the target counts as a negative.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import Array

from mmlm.utils.options import POSITIVE, Limits, option

NOT_NEGATIVE = Limits(0)
LARGEST_WINDOW = 255  # distances of a batch are bytes

Params = dict[str, Array]
Batch = dict[str, Array]


class RowGradients(NamedTuple):
  """The gradients of an update, and the sum and the number of its losses."""

  rows: dict[str, Array]  # of each table, which of its rows [n]
  gradients: dict[str, Array]  # of these rows [n, D]
  loss: Array
  weight: Array


class Objective(Protocol):
  """What learns word vectors."""

  optimizer: str  # the rule of sparse_step.py that it needs
  window: int
  micro_batch: int

  def init(
    self,
    key: Array,
    words: int,
    rows: int,
    dim: int,
  ) -> Params:
    """Returns the initial tables 'inputs' [R, D] and 'outputs' [V, D]."""
    ...

  def prepare(self, batch: Batch) -> Batch:
    """Returns the arrays of a batch that `gradients` reads, the updates on the first axis."""
    ...

  def gradients(
    self,
    params: Params,
    batch: Batch,
  ) -> RowGradients:
    """Returns the gradients of one update."""
    ...


class PairGradients(NamedTuple):
  """Gradients by the vectors of an update, the sum of its losses and their number."""

  context: Array  # [G, H, D]
  targets: Array  # [G, T, D]
  negatives: Array  # [G, K, D]
  loss: Array
  weight: Array


@dataclass(frozen=True, kw_only=True)
class NegativeSampling:
  """Options of `SkipGram` and `Cbow`; their batch is that of context_windows.py."""

  window: int = option(5, limits=Limits(1, below=LARGEST_WINDOW + 1))
  negatives: int = option(5, 'of a pair', limits=NOT_NEGATIVE)
  subsample: float = option(
    1e-3, 'share of the text above which occurrences of a word are dropped at random; 0 = never'
  )
  power: float = option(0.75, 'negatives are drawn by count^power')
  row: int = option(16, 'words that share their negatives (T)', limits=POSITIVE)
  shared: int = option(16, 'negatives that they share (K)', limits=POSITIVE)
  micro_batch: int = option(256, 'words of an update', limits=POSITIVE)
  limit: float = option(
    3.0,
    'learning rate times expected pairs of a word in an update, '
    'above which its gradients are scaled down; 0 = never',
  )
  shortest: int = option(3, 'letters of a subword, marks of word ends included', limits=POSITIVE)
  longest: int = option(
    0, '0 = no subwords: a word is represented by its own vector alone', limits=NOT_NEGATIVE
  )
  buckets: int = option(2000000, 'subwords are numbered by hash modulo this', limits=POSITIVE)

  optimizer = 'sgd'

  @property
  def pairs(self) -> float:
    """The average number of gradients that a word gets from its context."""
    return self.window + 1.0

  def init(
    self,
    key: Array,
    words: int,
    rows: int,
    dim: int,
  ) -> Params:
    """Returns inputs [R, D] drawn evenly around 0, and outputs [V, D] of zeros.

    The bound is 1 / 2D as in word2vec; with subwords 1 / D as in fastText.
    """
    bound = 1 / dim if self.longest else 0.5 / dim
    inputs = jax.random.uniform(
      key,
      (rows, dim),
      minval=-bound,
      maxval=bound,
    )
    return {'inputs': inputs, 'outputs': jnp.zeros((words, dim))}

  def prepare(self, batch: Batch) -> Batch:
    """Adds the words to be predicted, targets [M, G, T]; drops what `gradients` does not read."""
    targets = batch['words'][..., self.window : self.window + self.row]
    unused = {'weight'}
    if 'distinct' in batch:
      unused.add('words')
    read = {name: value for name, value in batch.items() if name not in unused}
    return read | {'targets': targets}

  def gradients(
    self,
    params: Params,
    batch: Batch,
  ) -> RowGradients:
    """Returns the gradients of one update of `prepare`."""
    outputs = params['outputs']
    context, rows_of = self._context(params['inputs'], batch)  # [G, H, D]
    found = self.of_vectors(
      context,
      outputs[batch['targets']],  # [G, T, D]
      outputs[batch['negatives']],  # [G, K, D]
      _windows(batch, self.window),
    )
    d_context, d_targets, d_negatives, loss, weight = found
    if 'scales' in batch:
      d_context = d_context * batch['scales'][..., None]
      d_negatives = d_negatives * batch['negative_scales'][..., None]
      d_targets *= batch['scales'][:, self.window : self.window + self.row, None]
    d_outputs = jnp.concatenate([_flat(d_targets), _flat(d_negatives)])
    output_rows = jnp.concatenate([batch['targets'].reshape(-1), batch['negatives'].reshape(-1)])
    input_rows, d_inputs = rows_of(d_context)
    return RowGradients(
      rows={'inputs': input_rows, 'outputs': output_rows},
      gradients={'inputs': d_inputs, 'outputs': d_outputs},
      loss=loss,
      weight=weight,
    )

  def of_vectors(
    self,
    context: Array,
    targets: Array,
    negatives: Array,
    windows: Array,
  ) -> PairGradients:
    """Returns the gradients by vectors.

    Args:
      context: [G, H, D], of the words of the rows and around them.
      targets: [G, T, D], of the words of the rows as what is predicted.
      negatives: [G, K, D], of the words that were drawn.
      windows: [G, T, H], 1 where a word is in the window of a target.
    """
    raise NotImplementedError

  def _context(
    self,
    inputs: Array,
    batch: Batch,
  ) -> tuple[Array, Callable]:
    """Returns the vectors of the words of the rows [G, H, D], and a function of their gradients.

    The function returns rows of `inputs` [n] and the gradients of these [n, D].
    """
    if 'distinct' in batch:
      return self._context_of_subwords(inputs, batch)
    words = batch['words']

    def rows_of(gradient: Array) -> tuple[Array, Array]:
      return words.reshape(-1), _flat(gradient)

    return inputs[words], rows_of

  def _context_of_subwords(
    self,
    inputs: Array,
    batch: Batch,
  ) -> tuple[Array, Callable]:
    distinct = batch['distinct']
    pieces = batch['pieces']
    owner = batch['owner']
    number = distinct.size
    ones = jnp.ones(len(owner))
    sums = jax.ops.segment_sum(inputs[pieces], owner, number + 1, indices_are_sorted=True)
    counts = jax.ops.segment_sum(ones, owner, number + 1, indices_are_sorted=True)
    means = sums / jnp.maximum(counts, 1)[:, None]

    def rows_of(gradient: Array) -> tuple[Array, Array]:
      of_words = jnp.zeros_like(means).at[distinct.reshape(-1)].add(_flat(gradient))
      # fastText's code adds the gradient of the mean to each of its parts, not 1 / n of it.
      return pieces, of_words[owner]

    return means[distinct], rows_of


@dataclass(frozen=True, kw_only=True)
class SkipGram(NegativeSampling):
  """Each word of a window predicts the word in its middle, a pair each."""

  def of_vectors(
    self,
    context: Array,
    targets: Array,
    negatives: Array,
    windows: Array,
  ) -> PairGradients:
    pairs = windows.sum(1)  # [G, H]: of each word of the context
    positive_logits = jnp.einsum('ghd,gtd->gth', context, targets)
    negative_logits = jnp.einsum('ghd,gkd->ghk', context, negatives)
    share = (self.negatives / self.shared) * pairs[..., None]
    d_positive = (jax.nn.sigmoid(positive_logits) - 1) * windows
    d_negative = jax.nn.sigmoid(negative_logits) * share
    from_targets = jnp.einsum('gth,gtd->ghd', d_positive, targets)
    from_negatives = jnp.einsum('ghk,gkd->ghd', d_negative, negatives)
    positive_loss = (jax.nn.softplus(-positive_logits) * windows).sum()
    negative_loss = (jax.nn.softplus(negative_logits) * share).sum()
    return PairGradients(
      context=from_targets + from_negatives,
      targets=jnp.einsum('gth,ghd->gtd', d_positive, context),
      negatives=jnp.einsum('ghk,ghd->gkd', d_negative, context),
      loss=positive_loss + negative_loss,
      weight=pairs.sum(),
    )


@dataclass(frozen=True, kw_only=True)
class Cbow(NegativeSampling):
  """The mean of a window predicts the word in its middle."""

  def of_vectors(
    self,
    context: Array,
    targets: Array,
    negatives: Array,
    windows: Array,
  ) -> PairGradients:
    sizes = windows.sum(2, keepdims=True)
    weights = windows / jnp.maximum(sizes, 1)  # [G, T, H]
    has_context = sizes[..., 0] > 0
    mean = jnp.einsum('gth,ghd->gtd', weights, context)
    positive_logits = (mean * targets).sum(-1)
    negative_logits = jnp.einsum('gtd,gkd->gtk', mean, negatives)
    share = (self.negatives / self.shared) * has_context[..., None]
    d_positive = ((jax.nn.sigmoid(positive_logits) - 1) * has_context)[..., None]
    d_negative = jax.nn.sigmoid(negative_logits) * share
    d_mean = d_positive * targets + jnp.einsum('gtk,gkd->gtd', d_negative, negatives)
    d_negatives = jnp.einsum('gtk,gtd->gkd', d_negative, mean)
    positive_loss = (jax.nn.softplus(-positive_logits) * has_context).sum()
    negative_loss = (jax.nn.softplus(negative_logits) * share).sum()
    # word2vec's and gensim's code add the gradient of the mean to each of its words, not 1 / n of
    # it.
    return PairGradients(
      context=jnp.einsum('gth,gtd->ghd', windows, d_mean),
      targets=d_positive * mean,
      negatives=d_negatives,
      loss=positive_loss + negative_loss,
      weight=has_context.sum(),
    )


def _windows(batch: Batch, window: int) -> Array:
  """Returns [G, T, H] float32: 1 where a word of the row is in the window of a target."""
  row = batch['left'].shape[1]
  distance = jnp.arange(row + 2 * window) - window - jnp.arange(row)[:, None]  # [T, H]
  left = batch['left'][..., None]
  right = batch['right'][..., None]
  inside = (distance != 0) & (-distance <= left) & (distance <= right)
  return inside.astype(jnp.float32)


def _flat(vectors: Array) -> Array:
  return vectors.reshape(-1, vectors.shape[-1])


@dataclass(frozen=True, kw_only=True)
class Glove:
  """Weighted least squares on the logarithm of co-occurrences (eq. 8).

  Its batch is that of cooccurrence.py. A row of a table holds the vector and, behind it, the bias.
  The vector of a word is the sum of both of its tables (4.2).
  """

  window: int = option(10, limits=Limits(1, below=LARGEST_WINDOW + 1))
  x_max: float = option(100.0, 'co-occurrence from which on a pair has the weight 1')
  power: float = 0.75
  micro_batch: int = option(
    8192, 'pairs of an update: each copies the tables, so small ones are slow', limits=POSITIVE
  )

  optimizer = 'adagrad'

  def init(
    self,
    key: Array,
    words: int,
    rows: int,
    dim: int,
  ) -> Params:
    """Returns both tables [V, D + 1], evenly within 1 / 2 (D + 1) of 0 as in the authors' code."""

    def draw(key: Array) -> Array:
      return jax.random.uniform(
        key,
        (words, dim + 1),
        minval=-0.5,
        maxval=0.5,
      ) / (dim + 1)

    of_inputs, of_outputs = jax.random.split(key)
    return {'inputs': draw(of_inputs), 'outputs': draw(of_outputs)}

  def prepare(self, batch: Batch) -> Batch:
    """Drops the weight of a batch."""
    return {name: value for name, value in batch.items() if name != 'weight'}

  def gradients(
    self,
    params: Params,
    batch: Batch,
  ) -> RowGradients:
    """Returns the gradients of one update."""
    left = params['inputs'][batch['rows']]  # [B, D + 1]
    right = params['outputs'][batch['columns']]
    counts = batch['values']
    present = counts > 0
    is_bias = jnp.arange(left.shape[1]) == left.shape[1] - 1
    d_left = jnp.where(is_bias, 1.0, right)
    d_right = jnp.where(is_bias, 1.0, left)
    prediction = (left * d_left).sum(-1) + right[:, -1]
    error = prediction - jnp.log(jnp.where(present, counts, 1.0))
    weights = jnp.minimum(1.0, counts / self.x_max) ** self.power  # 0 for padding
    scaled = (weights * error)[:, None]
    return RowGradients(
      rows={'inputs': batch['rows'], 'outputs': batch['columns']},
      gradients={'inputs': scaled * d_left, 'outputs': scaled * d_right},
      loss=0.5 * (weights * error**2).sum(),
      weight=present.sum(),
    )


WORD_VECTORS: dict[str, type] = {'skip_gram': SkipGram, 'cbow': Cbow, 'glove': Glove}
