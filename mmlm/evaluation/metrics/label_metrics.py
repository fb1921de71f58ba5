"""Metrics of classes and of numbers.

Classification, and sentiment as MMSA defines it (Mao et al. 2022).

Axes: N examples, C classes. Every example has one reference. Classes are names, numbers are those
that a regression predicts; a reference of either is text.
"""

import functools

import numpy as np
from numpy.typing import NDArray

from mmlm.evaluation.metrics import views
from mmlm.evaluation.metrics.metric import (
  Metric,
  References,
  Rows,
  Statistics,
  Texts,
  mean_statistics,
)

BINS = 15  # of the calibration error

Numbers = list[float]

# Classes


def _correct(hypotheses: Texts, references: References) -> NDArray:
  correct = [hypothesis == reference for hypothesis, (reference,) in zip(hypotheses, references)]
  return mean_statistics(correct)


def confusion(hypotheses: Texts, references: References) -> NDArray:
  """Returns [N, C (C + 1)]: the cell (class of the reference, predicted class) of each example.

  The last column counts predictions of classes that no reference has.
  """
  names = sorted({reference for (reference,) in references})
  classes = {name: number for number, name in enumerate(names)}
  counts = np.zeros((len(hypotheses), len(classes), len(classes) + 1))
  for example, (hypothesis, (reference,)) in enumerate(zip(hypotheses, references)):
    column = classes.get(hypothesis, len(classes))
    counts[example, classes[reference], column] = 1
  return counts.reshape(len(hypotheses), -1)


def confusion_table(predictions: Rows) -> tuple[list[str], NDArray]:
  """Returns the names of the classes and counts [C, C].

  Class of the reference by predicted class.
  """
  references = [prediction['references'][0] for prediction in predictions]
  hypotheses = [prediction['hypothesis'] for prediction in predictions]
  names = list(predictions[0].get('probabilities') or sorted({*references, *hypotheses}))
  numbers = {name: number for number, name in enumerate(names)}
  table = np.zeros((len(names), len(names)), int)
  for reference, hypothesis in zip(references, hypotheses):
    table[numbers[reference], numbers[hypothesis]] += 1
  return names, table


def _f1(sums: NDArray) -> tuple[NDArray, NDArray]:
  """Returns F1 [..., C] and support [..., C] of summed confusion tables."""
  size = int(sums.shape[-1] ** 0.5)
  table = sums.reshape(*sums.shape[:-1], size, size + 1)
  correct = np.diagonal(
    table,
    axis1=-2,
    axis2=-1,
  )
  support = table.sum(-1)
  predicted = table[..., :size].sum(-2)
  return 2 * correct / np.maximum(support + predicted, 1), support


def macro_f1(sums: NDArray) -> NDArray:
  """Returns the mean F1 of the classes, without those that are neither present nor predicted."""
  f1, support = _f1(sums)
  present = (support > 0) | (f1 > 0)
  return (f1 * present).sum(-1) / np.maximum(present.sum(-1), 1)


def weighted_f1(sums: NDArray) -> NDArray:
  """Returns the mean F1 of the classes, weighted by their frequency."""
  f1, support = _f1(sums)
  return (f1 * support).sum(-1) / support.sum(-1)


def _calibration(hypotheses: list[tuple[str, float]], references: References) -> NDArray:
  """Returns [N, 3 BINS]: in the bin of the confidence whether correct, the confidence, and 1."""
  statistics = np.zeros((len(hypotheses), BINS, 3))
  for example, ((label, confidence), (reference,)) in enumerate(zip(hypotheses, references)):
    number = min(int(confidence * BINS), BINS - 1)
    statistics[example, number] = label == reference, confidence, 1
  return statistics.reshape(len(hypotheses), -1)


def _expected_calibration_error(sums: NDArray) -> NDArray:
  bins = sums.reshape(*sums.shape[:-1], BINS, 3)
  correct, confidence, counts = np.moveaxis(bins, -1, 0)
  return np.abs(correct - confidence).sum(-1) / counts.sum(-1)


# Numbers


def _numbers(predictions: Numbers, references: References) -> tuple[NDArray, NDArray]:
  """Returns the predicted numbers and the labels, both [N]."""
  labels = [reference for (reference,) in references]
  return np.array(predictions, float), np.array(labels, float)


def _absolute_error(predictions: Numbers, references: References) -> NDArray:
  predicted, labels = _numbers(predictions, references)
  return mean_statistics(np.abs(predicted - labels))


def _moments(predictions: Numbers, references: References) -> NDArray:
  """Returns [N, 6]: x, y, x^2, y^2, x y and 1 of predicted numbers x and labels y."""
  x, y = _numbers(predictions, references)
  return np.stack([x, y, x**2, y**2, x * y, np.ones(len(x))], 1)


def _pearson(sums: NDArray) -> NDArray:
  x, y, xx, yy, xy, n = np.moveaxis(np.asarray(sums), -1, 0)
  spread = np.maximum((xx - x * x / n) * (yy - y * y / n), 0)
  correlation = (xy - x * y / n) / np.sqrt(np.where(spread > 0, spread, 1))
  return np.where(spread > 0, correlation, 0.0)


def _rounded(
  limit: int,
  predictions: Numbers,
  references: References,
) -> NDArray:
  """Correct when both round to the same whole number within -limit to limit.

  Halves round to even numbers, as in numpy and MMSA.
  """
  predicted, labels = _numbers(predictions, references)
  predicted = np.round(np.clip(predicted, -limit, limit))
  labels = np.round(np.clip(labels, -limit, limit))
  return mean_statistics(predicted == labels)


def _signs_with_zeros(predictions: Numbers, references: References) -> NDArray:
  """Returns the confusion [N, 6] of 'negative' and 'not negative' (MMSA's Has0)."""
  predicted, labels = _numbers(predictions, references)
  return _confusion_of_two(predicted >= 0, labels >= 0)


def _signs_without_zeros(predictions: Numbers, references: References) -> NDArray:
  """Returns the confusion [N, 6] of 'not positive' and 'positive'.

  0 for labels of 0 (MMSA's Non0).
  """
  predicted, labels = _numbers(predictions, references)
  return _confusion_of_two(predicted > 0, labels > 0) * (labels != 0)[:, None]


def _confusion_of_two(predicted: NDArray, labels: NDArray) -> NDArray:
  """Returns [N, 6], the confusion tables of two classes (False, True)."""
  table = np.zeros((len(labels), 2, 3))
  table[np.arange(len(labels)), labels.astype(int), predicted.astype(int)] = 1
  return table.reshape(len(labels), -1)


def _accuracy_of_table(sums: NDArray) -> NDArray:
  return (sums[..., 0] + sums[..., 4]) / sums.sum(-1)


# Definitions

ACCURACY = Metric(
  definition='share of right labels',
  higher_is_better=True,
  view=views.labels,
  statistics=_correct,
)
MACRO_F1 = Metric(
  definition='mean F1 of the classes',
  higher_is_better=True,
  view=views.labels,
  statistics=confusion,
  value=macro_f1,
)
WEIGHTED_F1 = Metric(
  definition='mean F1 of the classes, each as heavy as it is frequent',
  higher_is_better=True,
  view=views.labels,
  statistics=confusion,
  value=weighted_f1,
)
CALIBRATION_ERROR = Metric(
  definition=f'expected calibration error, {BINS} bins of equal width (Guo et al. 2017)',
  higher_is_better=False,
  view=views.confidences,
  statistics=_calibration,
  value=_expected_calibration_error,
)
MAE = Metric(
  definition='mean absolute error',
  higher_is_better=False,
  view=views.values,
  statistics=_absolute_error,
)
PEARSON = Metric(
  definition="Pearson's r",
  higher_is_better=True,
  view=views.values,
  statistics=_moments,
  value=_pearson,
)


def _rounded_accuracy(limit: int) -> Metric:
  return Metric(
    definition=f'share equal after rounding within -{limit}..{limit} (MMSA)',
    higher_is_better=True,
    view=views.values,
    statistics=functools.partial(_rounded, limit),
  )


ACC_7 = _rounded_accuracy(3)
ACC_5 = _rounded_accuracy(2)


def _accuracy_of_signs(statistics: Statistics, definition: str) -> Metric:
  return Metric(
    definition=definition,
    higher_is_better=True,
    view=views.values,
    statistics=statistics,
    value=_accuracy_of_table,
  )


def _f1_of_signs(statistics: Statistics, definition: str) -> Metric:
  return Metric(
    definition=definition,
    higher_is_better=True,
    view=views.values,
    statistics=statistics,
    value=weighted_f1,
  )


ACC_2_HAS0 = _accuracy_of_signs(
  _signs_with_zeros, 'accuracy of negative or not, all examples (MMSA Has0)'
)
F1_HAS0 = _f1_of_signs(
  _signs_with_zeros, 'weighted F1 of negative or not, all examples (MMSA Has0)'
)
ACC_2_NON0 = _accuracy_of_signs(
  _signs_without_zeros, 'accuracy of positive or negative, without labels of 0 (MMSA Non0)'
)
F1_NON0 = _f1_of_signs(
  _signs_without_zeros, 'weighted F1 of positive or negative, without labels of 0 (MMSA Non0)'
)
