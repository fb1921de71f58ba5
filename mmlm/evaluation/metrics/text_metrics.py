"""Metrics of texts by name: those of captions, of recognition, and those of translation by sacrebleu; each as sums of statistics.

Axes: N examples, K sufficient statistics of one metric.
"""

import functools

import numpy as np
import sacrebleu

from mmlm.data.text import words
from mmlm.evaluation.metrics.caption_metrics import CAPTION_METRICS, tokenize_caption
from mmlm.evaluation.metrics.label_metrics import LABEL_METRICS
from mmlm.evaluation.metrics.language_metrics import LANGUAGE_METRICS
from mmlm.evaluation.metrics.meteor import Unavailable
from mmlm.evaluation.metrics.metric import Metric
from mmlm.evaluation.metrics.speech_metrics import SPEECH_METRICS
from mmlm.evaluation.significance import bootstrap_interval
from mmlm.utils.choices import one_of
from mmlm.utils.errors import UserError


def _sacrebleu(metric, view: str, definition: str) -> Metric:
  """A metric of sacrebleu, 0 to 100, through the sufficient statistics that its own significance tests resample."""

  def statistics(hypotheses, references) -> np.ndarray:
    most = max(map(len, references))
    columns = [[group[i] if i < len(group) else None for group in references] for i in range(most)]
    return np.array(metric._extract_corpus_statistics(hypotheses, columns), np.float64)

  def value(sums) -> np.ndarray:
    rows = np.atleast_2d(sums)
    scores = [metric._compute_score_from_stats(row).score for row in rows]
    if np.ndim(sums) > 1:
      return np.array(scores)
    return scores[0]

  name = ' '.join([definition, f'(sacrebleu {sacrebleu.__version__})'])
  return Metric(name, statistics, value, view)


METRICS = (
  CAPTION_METRICS
  | LABEL_METRICS
  | SPEECH_METRICS
  | LANGUAGE_METRICS
  | {
    'bleu': _sacrebleu(
      sacrebleu.BLEU(),
      'surface',
      'BLEU-4 of detokenised, cased text: tok:13a|smooth:exp|case:mixed',
    ),
    'bleu_words': _sacrebleu(
      sacrebleu.BLEU(tokenize='none', force=True, smooth_method='none'),
      'words',
      'BLEU-4 of normalised, Moses-tokenised, lower-cased words, as published on Multi30k: tok:none|smooth:none|case:lc',
    ),
    'chrf': _sacrebleu(sacrebleu.CHRF(), 'surface', 'chrF2 of detokenised, cased text: nc:6|nw:0'),
    'ter': _sacrebleu(
      sacrebleu.TER(),
      'surface',
      'TER of detokenised text, lower-cased: tok:tercom|norm:no|punct:yes',
    ),
  }
)


def lower_words(text: str, language: str) -> str:
  """Lower-cased before Moses' rules, as published: a capital word with a full stop may pass for an abbreviation ('Bart.')."""
  return words(text.lower(), language)


class Views:
  """Predictions as the metrics want to see them (`Metric.view`): pairs of hypotheses and lists of references."""

  def __init__(self, predictions: list[dict], language: str = ''):
    self.predictions = predictions
    self.language = language

  @functools.cache  # noqa: B019 short-lived
  def of(self, view: str) -> tuple[list, list]:
    if view == 'nats':
      return self.predictions, self.predictions
    hypotheses, references = (
      [row[key] for row in self.predictions] for key in ('hypothesis', 'references')
    )
    if view in ('surface', 'label'):
      return hypotheses, references
    if view in ('value', 'confidence'):
      scores = [row['score'] for row in self.predictions]
      return scores if view == 'value' else list(zip(hypotheses, scores)), references
    if view == 'caption':
      return [tokenize_caption(text) for text in hypotheses], [
        [tokenize_caption(text) for text in group] for group in references
      ]
    # A file that is not ours may lack the words as they were written.
    written = [
      row['words'].lower() if 'words' in row else lower_words(row['hypothesis'], self.language)
      for row in self.predictions
    ]
    return written, [[lower_words(text, self.language) for text in group] for group in references]

  @functools.cache  # noqa: B019
  def statistics(self, name: str) -> np.ndarray:
    """[N, K] of the metric `name`; counted once for all metrics that share it."""
    return METRICS[name].statistics(*self.of(METRICS[name].view))


def check_reference_words(references, split: str, config) -> None:
  """Fails when the references of a split (lists of texts) do not have the words that `evaluate.reference_words` tells.

  Scores of tokenised text can be compared only where the references were tokenised alike: on Multi30k's test_2016 in German that
  is 12,103 words.
  """
  if not (wanted := config.evaluate.reference_words.get(split)):
    return
  language = config.data.languages.target
  found = sum(len(lower_words(text, language).split()) for group in references for text in group)
  if found != wanted:
    raise UserError(
      f"{split}: the references have {found} words by Moses' rules, not the {wanted} of evaluate.reference_words: the tokenised "
      'BLEU would not be the published one. Is it the right split, language and version of sacremoses?'
    )


def computable(views: Views, names) -> list[str]:
  """The metrics that this machine can compute; for one that it cannot the reason is printed."""
  found = []
  for name in names:
    one_of('evaluate.metrics', name, METRICS)
    try:
      views.statistics(name)
      found.append(name)
    except Unavailable as reason:
      print(reason)
  return found


def score_texts(views: Views, names, samples: int = 1000) -> dict:
  """{name: {'value', 'low', 'high'}} with 95 % bootstrap intervals over the examples, of the metrics that are computable."""

  def interval(name):
    return bootstrap_interval(views.statistics(name), METRICS[name].value, samples)

  return {
    name: dict(zip(('value', 'low', 'high'), interval(name))) for name in computable(views, names)
  }
