"""Metrics of translations by sacrebleu, on its scale of 0 to 100.

They are computed from the sufficient statistics that sacrebleu's own significance tests resample.
"""

import functools

import numpy as np
import sacrebleu
from numpy.typing import NDArray

from mmlm.evaluation.metrics import views
from mmlm.evaluation.metrics.metric import Metric, References, Texts, View


def _statistics(
  scorer,
  hypotheses: Texts,
  references: References,
) -> NDArray:
  """Returns [N, K] of one of sacrebleu's metrics."""
  most = max(map(len, references))
  columns = []  # sacrebleu's form: a list of N references, or None, for each place in a group
  for place in range(most):
    columns.append([group[place] if place < len(group) else None for group in references])
  return np.array(scorer._extract_corpus_statistics(hypotheses, columns), np.float64)


def _value(scorer, sums: NDArray) -> NDArray:
  scores = []
  for statistics in np.atleast_2d(sums):
    scores.append(scorer._compute_score_from_stats(statistics).score)
  if np.ndim(sums) > 1:
    return np.array(scores)
  return scores[0]


def _sacrebleu(
  scorer,
  view: View,
  higher_is_better: bool,
  definition: str,
) -> Metric:
  """Returns the metric of a scorer of sacrebleu; its version stands in the definition."""
  return Metric(
    definition=f'{definition} (sacrebleu {sacrebleu.__version__})',
    higher_is_better=higher_is_better,
    view=view,
    statistics=functools.partial(_statistics, scorer),
    value=functools.partial(_value, scorer),
  )


BLEU = _sacrebleu(
  sacrebleu.BLEU(),
  views.surface,
  higher_is_better=True,
  definition='BLEU-4 of detokenised, cased text: tok:13a|smooth:exp|case:mixed',
)
BLEU_WORDS = _sacrebleu(
  sacrebleu.BLEU(
    tokenize='none',
    force=True,
    smooth_method='none',
  ),
  views.moses_words,
  higher_is_better=True,
  definition='BLEU-4 of normalised, Moses-tokenised, lower-cased words, as published on Multi30k: '
  'tok:none|smooth:none|case:lc',
)
CHRF = _sacrebleu(
  sacrebleu.CHRF(),
  views.surface,
  higher_is_better=True,
  definition='chrF2 of detokenised, cased text: nc:6|nw:0',
)
TER = _sacrebleu(
  sacrebleu.TER(),
  views.surface,
  higher_is_better=False,
  definition='TER of detokenised text, lower-cased: tok:tercom|norm:no|punct:yes',
)
