"""Caption metrics with coco-caption's definitions: BLEU, ROUGE-L, CIDEr-D; exact match and word F1.

Axes: N examples, K sufficient statistics of one metric. A metric is two functions: `statistics` gives [N, K],
`value` turns sums over examples [..., K] into values [...], so that resampling never counts an n-gram again.
`hypotheses` are N lists of tokens (`tokenize_caption`), `references` N lists of one or more lists of tokens.
"""

import collections
import functools
import math
import re
from collections.abc import Callable

import numpy as np

from mmlm.evaluation.metrics.meteor import meteor_statistics, meteor_value
from mmlm.evaluation.metrics.metric import Metric

ORDER = 4  # longest n-gram of BLEU and CIDEr-D

# What coco-caption drops. Brackets are on its list as -LRB- but arrive in lower case, so they stay.
_PUNCTUATION = frozenset(["''", '``', '--', '...', *'\'`".?!,:-;', *'，。、；：？！（）《》「」·'])
_SPELLING = str.maketrans(
  {'“': '"', '”': '"', '’': "'", '‘': '`', '–': ' -- ', '—': ' -- ', '…': ' ... '}
)
_BRACKETS = {'(': '-lrb-', ')': '-rrb-', '[': '-lsb-', ']': '-rsb-', '{': '-lcb-', '}': '-rcb-'}
_CJK = re.compile('([\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff])')
_ABBREVIATIONS = (
  r'mrs?|ms|messrs|drs?|prof|gen|col|lt|sgt|capt|rev|gov|sen|rep|hon|jr|sr|st|ave|blvd|rd|mt|ft|wm|etc|vs|al'
  r'|inc|co|corp|ltd|bros|jan|feb|mar|apr|aug|sept?|oct|nov|dec|no(?=\.\s*\d)'
)
_TOKEN = re.compile(
  rf"""
    https?://\S+ | \S+@\w[\w.-]*\w                                                # addresses
  | (?<!\w)(?:[^\W\d_]\.)+(?![^\W_])                                              # U.S.  p.m.  J.
  | (?<!\w)(?i:{_ABBREVIATIONS})\.(?!\w)
  | (?<!\w)'\d\ds?\b | (?<![\w.])[-+]?\d*[.:]?\d+(?:[.,:/]\d+)+ | (?<!\w)[-+.]\d+ # '90s  10:30  1,000  -5
  | (?i:can(?=not\b)|gon(?=na\b)|wan(?=na\b)|got(?=ta\b)|lem(?=me\b)|gim(?=me\b)|'t(?=is\b|was\b))
  | (?i:[^\W_]+?(?=n't\b)|n't\b|'(?:s|m|d|re|ve|ll|n')(?!\w)) | [A-Z]+&[A-Z]+\b
  | \w(?:\w|[-./](?=\w)|'(?=\w)(?!(?i:s|m|d|re|ve|ll|n)\b))*
  | \.\.\. | --+ | [?!]+ | `` | '' | \S
""",
  re.VERBOSE,
)


def tokenize_caption(text: str) -> list[str]:
  """Tokens as coco-caption counts: Penn Treebank rules, lower case, no punctuation; CJK characters alone.

  Agrees with Stanford's PTBTokenizer, as pycocoevalcap 1.2 runs it, on all 40,455 captions of Flickr8k.
  """
  text = _CJK.sub(r' \1 ', text).translate(_SPELLING)
  tokens = (_BRACKETS.get(token, token.lower()) for token in _TOKEN.findall(text))
  return [token for token in tokens if token not in _PUNCTUATION]


def _ngrams(tokens) -> collections.Counter:
  spans = (
    (
      i,
      i + n,
    )
    for n in range(1, ORDER + 1)
    for i in range(len(tokens) - n + 1)
  )
  return collections.Counter(tuple(tokens[i:j]) for i, j in spans)


def bleu_statistics(hypotheses, references) -> np.ndarray:
  """[N, 10]: clipped matches and n-grams of order 1 to 4, length, closest reference length (ties: less)."""
  rows = np.zeros([len(hypotheses), 2 * ORDER + 2])
  for row, tokens, group in zip(rows, hypotheses, references, strict=True):
    most = functools.reduce(
      lambda a, b: a | b, map(_ngrams, group)
    )  # the largest count over references
    for gram, count in (_ngrams(tokens) & most).items():
      row[len(gram) - 1] += count
    row[ORDER : 2 * ORDER] = [
      max(
        0,
        len(tokens) - n,
      )
      for n in range(ORDER)
    ]
    row[-2:] = (
      len(tokens),
      min(
        (
          abs(len(r) - len(tokens)),
          len(r),
        )
        for r in group
      )[1],
    )
  return rows


def bleu_value(sums: np.ndarray, order: int) -> np.ndarray:
  """Corpus BLEU (Papineni et al. 2002); coco-caption's small constants make an empty hypothesis 0."""
  tiny = 1e-15
  small = 1e-9
  precisions = (sums[..., :order] + tiny) / (sums[..., ORDER : ORDER + order] + small)
  ratio = (sums[..., -2] + tiny) / (sums[..., -1] + small)
  return precisions.prod(-1) ** (1 / order) * np.exp(
    np.minimum(
      0,
      1 - 1 / ratio,
    )
  )


def _mean_statistics(scores) -> np.ndarray:
  """Scores of N examples and a count of 1 each, [N, 2], of which `mean_value` makes a mean."""
  return np.stack([np.asarray(scores, np.float64), np.ones(len(scores))], -1)


def _mean_of(score: Callable) -> Callable:
  """The statistics [N, 2] of a metric that is the mean of score(tokens, references of the example)."""
  return lambda hypotheses, references: _mean_statistics(list(map(score, hypotheses, references)))


def _longest_common_subsequence(first, second) -> int:
  """Bit-parallel (Hyyro 2004): bit j of `row` falls to 0 where the length grows at second[j]."""
  places = collections.defaultdict(int)
  for j, token in enumerate(second):
    places[token] |= 1 << j
  full = row = (1 << len(second)) - 1
  for token in first:
    shared = row & places[token]
    row = (row + shared | row - shared) & full
  return (full ^ row).bit_count()


def _rouge_l(tokens, group) -> float:
  """ROUGE-L (Lin 2004) with beta 1.2; precision and recall are each the best over the references."""
  common = [_longest_common_subsequence(tokens, reference) for reference in group]
  weight = 1.2**2
  precision = max(common) / max(1, len(tokens))
  recall = max(c / max(1, len(reference)) for c, reference in zip(common, group))
  if precision:
    return (1 + weight) * precision * recall / (recall + weight * precision)
  return 0.0


def _tf_idf(grams, idf, unseen) -> tuple[dict, list]:
  """Weight of each n-gram, and the sum of squared weights of each order."""
  weights = {gram: count * idf.get(gram, unseen) for gram, count in grams.items()}
  squares = [0.0] * ORDER
  for gram, weight in weights.items():
    squares[len(gram) - 1] += weight**2
  return weights, squares


def _clipped_cosines(hypothesis, reference) -> float:
  """Sum over orders of the cosine of two `_tf_idf`; the hypothesis counts no more than the reference does."""
  (weights, squares), (others, other_squares) = hypothesis, reference
  products = [0.0] * ORDER
  for gram in weights.keys() & others.keys():
    products[len(gram) - 1] += min(weights[gram], others[gram]) * others[gram]
  return sum(
    p / math.sqrt(a * b)
    for p, a, b in zip(
      products,
      squares,
      other_squares,
    )
    if a * b
  )


def cider_statistics(hypotheses, references, sigma: float = 6.0) -> np.ndarray:
  """[N, 2]: CIDEr-D (Vedantam et al. 2015, section 6), document frequencies of all these references."""
  grams = [[_ngrams(reference) for reference in group] for group in references]
  frequency = collections.Counter(gram for group in grams for gram in set().union(*group))
  unseen = math.log(max(1, len(references)))
  idf = {gram: unseen - math.log(count) for gram, count in frequency.items()}

  def bigrams(tokens):
    return max(0, len(tokens) - 1)  # what coco-caption takes for the length

  scores = []
  for tokens, group, grams_of_group in zip(hypotheses, references, grams, strict=True):
    vector = _tf_idf(_ngrams(tokens), idf, unseen)
    total = 0.0
    for reference, counts in zip(group, grams_of_group):
      gaussian = math.exp(-((bigrams(tokens) - bigrams(reference)) ** 2) / (2 * sigma**2))
      total += gaussian * _clipped_cosines(vector, _tf_idf(counts, idf, unseen))
    scores.append(10 * total / ORDER / len(group))
  return _mean_statistics(scores)


def _exact(tokens, group):
  return bool(tokens) and tokens in group


def _word_f1(tokens, group) -> float:
  """The best F1 of two bags of words, 2 |shared| / (|hypothesis| + |reference|), over references."""

  def shared(reference):
    return (collections.Counter(tokens) & collections.Counter(reference)).total()

  return max(
    2
    * shared(reference)
    / max(
      1,
      len(tokens) + len(reference),
    )
    for reference in group
  )


_BLEU = 'corpus BLEU-{}, closest reference length, PTB tokens, lower case (coco-caption)'
CAPTION_METRICS = {
  **{
    f'bleu_{n}': Metric(_BLEU.format(n), bleu_statistics, functools.partial(bleu_value, order=n))
    for n in range(1, ORDER + 1)
  },
  'rouge_l': Metric(
    'mean ROUGE-L F, beta 1.2, best precision and best recall over references (coco-caption)',
    _mean_of(_rouge_l),
  ),
  'cider_d': Metric(
    'mean CIDEr-D, n 1 to 4, sigma 6, x10, idf of the evaluated references (coco-caption)',
    cider_statistics,
  ),
  'meteor': Metric(
    'METEOR 1.5, English parameters (coco-caption)', meteor_statistics, meteor_value
  ),
  'exact_match': Metric('fraction whose tokens equal those of a reference', _mean_of(_exact)),
  'word_f1': Metric(
    'mean over examples of the best F1 over references of bags of words', _mean_of(_word_f1)
  ),
}
