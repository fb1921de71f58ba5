"""Grades of single predictions for reports: by a text metric, error rate, class, number or nats."""

import numpy as np

from mmlm.evaluation.metrics import METRICS
from mmlm.evaluation.metrics.speech_metrics import error_rate, plain
from mmlm.tasks.base import Grade

NO_BREAK = '\N{NO-BREAK SPACE}'


def grade_texts(
  predictions: list[dict],
  metric: str,
  label: str,
  digits: int,
) -> list[Grade]:
  """Grades texts by a metric of single sentences.

  Args:
    label: the name of the metric on the page.
    digits: decimals of its values.
  """
  exact = _values('exact_match', predictions)
  values = _values(metric, predictions)
  grades = []
  for prediction, is_exact, value in zip(predictions, exact, values, strict=True):
    score = format_number(prediction['score'])
    summary = f'{label} {value:.{digits}f} · score{NO_BREAK}{score}'
    grades.append(Grade(bool(is_exact), value, summary))
  return grades


def _values(metric_name: str, predictions: list[dict]) -> list[float]:
  metric = METRICS[metric_name]
  statistics = metric.statistics(*metric.view(predictions, ''))
  return np.atleast_1d(metric.value(statistics)).tolist()


def grade_error_rates(predictions: list[dict]) -> list[Grade]:
  """Grades transcripts by WER, or by CER where no reference has two words."""
  references = [prediction['references'] for prediction in predictions]
  hypotheses = [prediction['hypothesis'] for prediction in predictions]
  metric = 'cer'
  for texts in references:
    if any(len(plain(text).split()) > 1 for text in texts):
      metric = 'wer'
  statistics = METRICS[metric].statistics(hypotheses, references)
  rates = error_rate(statistics).tolist()
  grades = []
  for prediction, counts, rate in zip(predictions, statistics, rates, strict=True):
    score = f'{prediction["score"]:.2f}'
    summary = f'{metric.upper()} {rate:.1f} % · score{NO_BREAK}{score}'
    grades.append(Grade(not counts[1:].any(), rate, summary))
  return grades


def grade_classes(predictions: list[dict]) -> list[Grade]:
  """Grades classes by the probability of the correct one."""
  grades = []
  for prediction in predictions:
    (reference,) = prediction['references']
    probability = prediction['probabilities'].get(reference, 0.0)
    summary = f'correct class {probability:.2f}, predicted class {prediction["score"]:.2f}'
    grades.append(Grade(prediction['hypothesis'] == reference, probability, summary))
  return grades


def grade_numbers(predictions: list[dict]) -> list[Grade]:
  """Grades numbers by their distance from the reference."""
  grades = []
  for prediction in predictions:
    distance = abs(prediction['score'] - float(prediction['references'][0]))
    grades.append(Grade(False, distance, f'off by {distance:.2f}'))
  return grades


def grade_likelihoods(predictions: list[dict]) -> list[Grade]:
  """Grades texts by the mean nats of their tokens."""
  grades = []
  for prediction in predictions:
    nats = prediction['nats'] / max(prediction['tokens'], 1)
    grades.append(Grade(False, nats, f'{nats:.3f} nats a token'))
  return grades


def scored_text(prediction: dict) -> dict:
  """Returns a prediction that shows the text it scored, where it has no hypothesis."""
  if prediction['hypothesis']:
    return prediction
  return prediction | {'hypothesis': prediction['references'][0], 'references': []}


def format_number(value: object) -> str:
  """Formats a float with three decimals, or one from 100 on; other values as they print."""
  if not isinstance(value, float):
    return str(value)
  digits = 3 if abs(value) < 100 else 1
  return f'{value:,.{digits}f}'
