"""Scores of predictions, with intervals, by the metrics of METRICS.

Axes: N examples, K sufficient statistics of one metric.
"""

from collections.abc import Iterable

from numpy.typing import NDArray

from mmlm.evaluation.metrics import METRICS
from mmlm.evaluation.metrics.metric import Pair, Rows, Unavailable, View
from mmlm.evaluation.metrics.views import lower_words
from mmlm.evaluation.significance import bootstrap_interval
from mmlm.utils.choices import one_of
from mmlm.utils.errors import UserError


class Predictions:
  """The rows of a predictions file, and their statistics by metric; each is computed once.

  Args:
    rows: N rows of a predictions file.
    language: of the texts, for Moses' tokenization rules.
  """

  def __init__(
    self,
    rows: Rows,
    language: str = '',
  ):
    self.rows = rows
    self.language = language
    self._views: dict[View, Pair] = {}
    self._statistics: dict[tuple, NDArray] = {}

  def statistics(self, name: str) -> NDArray:
    """Returns the statistics [N, K] of the metric `name`.

    Raises:
      Unavailable: this machine cannot compute the metric.
    """
    metric = METRICS[name]
    key = metric.view, metric.statistics  # metrics may share both
    if key not in self._statistics:
      hypotheses, references = self._in_view(metric.view)
      self._statistics[key] = metric.statistics(hypotheses, references)
    return self._statistics[key]

  def _in_view(self, view: View) -> Pair:
    if view not in self._views:
      self._views[view] = view(self.rows, self.language)
    return self._views[view]


def check_reference_words(
  references: Iterable[list[str]],
  split: str,
  config,
) -> None:
  """Fails when the references of a split do not have `evaluate.reference_words` words.

  Scores of tokenised text can be compared only where the references were tokenised alike: on
  Multi30k's test_2016 in German that is 12,103 words.
  """
  expected = config.evaluate.reference_words.get(split)
  if not expected:
    return
  language = config.data.languages.target
  count = 0
  for group in references:
    for text in group:
      count += len(lower_words(text, language).split())
  if count != expected:
    raise UserError(
      f"{split}: the references have {count} words by Moses' rules, not the {expected} of "
      'evaluate.reference_words: the tokenised BLEU would not be the published one. '
      'Is it the right split, language and version of sacremoses?'
    )


def computable(predictions: Predictions, names: Iterable[str]) -> list[str]:
  """Returns the metrics that this machine can compute; prints the reason for every other one."""
  result = []
  for name in names:
    one_of('evaluate.metrics', name, METRICS)
    try:
      predictions.statistics(name)
      result.append(name)
    except Unavailable as reason:
      print(reason)
  return result


def score_predictions(
  predictions: Predictions,
  names: Iterable[str],
  samples: int = 1000,
) -> dict[str, dict[str, float]]:
  """Returns {name: {'value', 'low', 'high'}} of the metrics that are computable.

  The intervals hold 95 %, by bootstrap over the examples with `samples` draws.
  """
  scores = {}
  for name in computable(predictions, names):
    interval = bootstrap_interval(predictions.statistics(name), METRICS[name].value, samples)
    scores[name] = dict(zip(('value', 'low', 'high'), interval))
  return scores
