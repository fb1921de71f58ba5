"""Caption metrics with coco-caption's definitions: BLEU, ROUGE-L, CIDEr-D; exact match and word F1.

Axes: N examples, K sufficient statistics of one metric. `hypotheses` are N lists of tokens
(`views.caption_tokens`), `references` N lists of one or more lists of tokens.
"""

import collections
import functools
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from mmlm.evaluation.metrics import views
from mmlm.evaluation.metrics.meteor import meteor_statistics, meteor_value
from mmlm.evaluation.metrics.metric import Metric, Statistics, mean_statistics

ORDER = 4  # longest n-gram of BLEU and CIDEr-D

Tokens = list[str]
Group = list[Tokens]  # the references of an example


def _ngrams(tokens: Tokens) -> collections.Counter:
  """Counts the n-grams of order 1 to ORDER."""
  counts = collections.Counter()
  for order in range(1, ORDER + 1):
    for start in range(len(tokens) - order + 1):
      counts[tuple(tokens[start : start + order])] += 1
  return counts


# BLEU


def bleu_statistics(hypotheses: list[Tokens], references: list[Group]) -> NDArray:
  """Returns [N, 10]: clipped matches and n-grams of order 1 to 4, length, closest reference length.

  Of two references that are equally close in length the shorter one counts.
  """
  statistics = np.zeros([len(hypotheses), 2 * ORDER + 2])
  for counts, tokens, group in zip(statistics, hypotheses, references, strict=True):
    largest = collections.Counter()  # count of each n-gram, the largest over the references
    for reference in group:
      largest |= _ngrams(reference)
    for gram, count in (_ngrams(tokens) & largest).items():
      counts[len(gram) - 1] += count
    for order in range(ORDER):
      counts[ORDER + order] = max(0, len(tokens) - order)
    counts[-2] = len(tokens)
    counts[-1] = _closest_length(len(tokens), group)
  return statistics


def _closest_length(length: int, group: Group) -> int:
  """Returns the length of the reference whose length is closest.

  Of two equally close the shorter.
  """
  distances = [(abs(len(reference) - length), len(reference)) for reference in group]
  return min(distances)[1]


def bleu_value(sums: NDArray, order: int) -> NDArray:
  """Returns corpus BLEU (Papineni et al. 2002).

  coco-caption's small constants make an empty hypothesis 0.
  """
  tiny = 1e-15
  small = 1e-9
  precisions = (sums[..., :order] + tiny) / (sums[..., ORDER : ORDER + order] + small)
  ratio = (sums[..., -2] + tiny) / (sums[..., -1] + small)
  brevity_penalty = np.exp(np.minimum(0, 1 - 1 / ratio))
  return precisions.prod(-1) ** (1 / order) * brevity_penalty


# Means over examples


def _mean_of(score: Callable[[Tokens, list[Tokens]], float]) -> Statistics:
  """Returns the statistics [N, 2] of a metric that is the mean of score(tokens, references)."""

  def statistics(hypotheses: list, references: list) -> NDArray:
    return mean_statistics(list(map(score, hypotheses, references)))

  return statistics


def _longest_common_subsequence(first: Tokens, second: Tokens) -> int:
  """Bit-parallel (Hyyro 2004): bit j of `state` falls to 0 where the length grows at second[j]."""
  places = collections.defaultdict(int)
  for j, token in enumerate(second):
    places[token] |= 1 << j
  full = (1 << len(second)) - 1
  state = full
  for token in first:
    shared = state & places[token]
    state = (state + shared | state - shared) & full
  return (full ^ state).bit_count()


def _rouge_l(tokens: Tokens, group: Group) -> float:
  """ROUGE-L (Lin 2004), beta 1.2; precision and recall are each the best over the references."""
  weight = 1.2**2
  precision = 0.0
  recall = 0.0
  for reference in group:
    common = _longest_common_subsequence(tokens, reference)
    precision = max(precision, common / max(1, len(tokens)))
    recall = max(recall, common / max(1, len(reference)))
  if precision:
    return (1 + weight) * precision * recall / (recall + weight * precision)
  return 0.0


def _exact(tokens: Tokens, group: Group) -> bool:
  return bool(tokens) and tokens in group


def _word_f1(tokens: Tokens, group: Group) -> float:
  """The best F1 of two bags of words, 2 |shared| / (|hypothesis| + |reference|).

  It is taken over the references.
  """
  best = 0.0
  for reference in group:
    shared = collections.Counter(tokens) & collections.Counter(reference)
    best = max(best, 2 * shared.total() / max(1, len(tokens) + len(reference)))
  return best


# CIDEr-D


class _TfIdf:
  """Weights of n-grams, with the document frequencies of all references."""

  def __init__(self, ngrams_of_references: list[list[collections.Counter]]):
    frequency = collections.Counter()
    for group in ngrams_of_references:
      frequency.update(set().union(*group))
    self.unseen = math.log(max(1, len(ngrams_of_references)))
    self.idf = {gram: self.unseen - math.log(count) for gram, count in frequency.items()}

  def __call__(self, ngrams: collections.Counter) -> tuple[dict, list]:
    """Returns the weight of each n-gram, and the sum of squared weights of each order."""
    weights = {gram: count * self.idf.get(gram, self.unseen) for gram, count in ngrams.items()}
    squares = [0.0] * ORDER
    for gram, weight in weights.items():
      squares[len(gram) - 1] += weight**2
    return weights, squares


def _clipped_cosines(hypothesis: tuple[dict, list], reference: tuple[dict, list]) -> float:
  """Sum over orders of the cosine of two tf-idf vectors.

  An n-gram counts in the hypothesis no more than in the reference.
  """
  weights, squares = hypothesis
  reference_weights, reference_squares = reference
  products = [0.0] * ORDER
  for gram in weights.keys() & reference_weights.keys():
    clipped = min(weights[gram], reference_weights[gram])
    products[len(gram) - 1] += clipped * reference_weights[gram]
  total = 0.0
  for product, square, reference_square in zip(products, squares, reference_squares):
    if square * reference_square:
      total += product / math.sqrt(square * reference_square)
  return total


def cider_statistics(
  hypotheses: list[Tokens],
  references: list[Group],
  sigma: float = 6.0,
) -> NDArray:
  """Returns [N, 2]: CIDEr-D (Vedantam et al. 2015, section 6).

  The document frequencies are those of all `references`.
  """
  ngrams_of_references = [[_ngrams(reference) for reference in group] for group in references]
  tf_idf = _TfIdf(ngrams_of_references)

  def bigrams(tokens: Tokens) -> int:
    return max(0, len(tokens) - 1)  # what coco-caption takes for the length

  scores = []
  for tokens, group, ngrams in zip(hypotheses, references, ngrams_of_references, strict=True):
    vector = tf_idf(_ngrams(tokens))
    total = 0.0
    for reference, counts in zip(group, ngrams):
      difference = bigrams(tokens) - bigrams(reference)
      gaussian = math.exp(-(difference**2) / (2 * sigma**2))
      total += gaussian * _clipped_cosines(vector, tf_idf(counts))
    scores.append(10 * total / ORDER / len(group))
  return mean_statistics(scores)


# Definitions


def bleu(order: int) -> Metric:
  """Returns coco-caption's BLEU of n-grams up to `order`."""
  return Metric(
    definition=f'corpus BLEU-{order}, closest reference length, PTB tokens, lower case '
    '(coco-caption)',
    higher_is_better=True,
    view=views.caption_tokens,
    statistics=bleu_statistics,
    value=functools.partial(bleu_value, order=order),
  )


ROUGE_L = Metric(
  definition='mean ROUGE-L F, beta 1.2, best precision and best recall over references '
  '(coco-caption)',
  higher_is_better=True,
  view=views.caption_tokens,
  statistics=_mean_of(_rouge_l),
)
CIDER_D = Metric(
  definition='mean CIDEr-D, n 1 to 4, sigma 6, x10, idf of the evaluated references (coco-caption)',
  higher_is_better=True,
  view=views.caption_tokens,
  statistics=cider_statistics,
)
METEOR = Metric(
  definition='METEOR 1.5, English parameters (coco-caption)',
  higher_is_better=True,
  view=views.caption_tokens,
  statistics=meteor_statistics,
  value=meteor_value,
)
EXACT_MATCH = Metric(
  definition='fraction whose tokens equal those of a reference',
  higher_is_better=True,
  view=views.caption_tokens,
  statistics=_mean_of(_exact),
)
WORD_F1 = Metric(
  definition='mean over examples of the best F1 over references of bags of words',
  higher_is_better=True,
  view=views.caption_tokens,
  statistics=_mean_of(_word_f1),
)
