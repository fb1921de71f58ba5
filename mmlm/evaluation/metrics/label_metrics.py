"""Metrics of labels and of scores: classification, and sentiment as MMSA defines it (Mao et al. 2022); as sums of statistics.

Axes: N examples, C classes. Views (`Metric.view`): 'label' gives names of classes, 'confidence' (name, probability) for names,
'value' numbers.
"""

import numpy as np

from mmlm.evaluation.metrics.metric import Metric

BINS = 15


def _correct(hypotheses, references) -> np.ndarray:
  """[N, 2] for a mean: right or not, and 1."""
  right = [hypothesis == reference for hypothesis, (reference,) in zip(hypotheses, references)]
  return np.stack([np.array(right, float), np.ones(len(right))], 1)


def confusion(hypotheses, references) -> np.ndarray:
  """[N, C (C + 1)]: one cell of the table (class of the reference, class said); the last column is for classes never asked for."""
  classes = {name: i for i, name in enumerate(sorted({reference for (reference,) in references}))}
  counts = np.zeros((len(hypotheses), len(classes), len(classes) + 1))
  for row, (hypothesis, (reference,)) in enumerate(zip(hypotheses, references)):
    counts[row, classes[reference], classes.get(hypothesis, len(classes))] = 1
  return counts.reshape(len(hypotheses), -1)


def confusion_table(predictions: list[dict]) -> tuple[list[str], np.ndarray]:
  """Rows of a predictions file -> the names of the classes, and counts [C, C]: class of the reference, class said."""
  true = [row['references'][0] for row in predictions]
  said = [row['hypothesis'] for row in predictions]
  names = list(predictions[0].get('probabilities') or sorted({*true, *said}))
  table = np.zeros((len(names), len(names)), int)
  np.add.at(
    table,
    ([names.index(name) for name in true], [names.index(name) for name in said]),
    1,
  )
  return names, table


def _f1(sums) -> tuple[np.ndarray, np.ndarray]:
  """F1 [..., C] and support [..., C] of summed confusion tables."""
  size = int(sums.shape[-1] ** 0.5)
  table = sums.reshape(*sums.shape[:-1], size, size + 1)
  hit = np.diagonal(table, axis1=-2, axis2=-1)
  support = table.sum(-1)
  said = table[..., :size].sum(-2)
  return 2 * hit / np.maximum(support + said, 1), support


def macro_f1(sums) -> np.ndarray:
  """Mean F1 of the classes, each as heavy; a class that is neither there nor said counts in no mean."""
  found, support = _f1(sums)
  there = (support > 0) | (found > 0)
  return (found * there).sum(-1) / np.maximum(there.sum(-1), 1)


def weighted_f1(sums) -> np.ndarray:
  """Mean F1 of the classes, each as heavy as it is frequent."""
  found, support = _f1(sums)
  return (found * support).sum(-1) / support.sum(-1)


def _calibration(hypotheses, references) -> np.ndarray:
  """[N, 3 BINS]: for the bin of the confidence, right or not, the confidence, and 1."""
  out = np.zeros((len(hypotheses), BINS, 3))
  for row, ((label, confidence), (reference,)) in enumerate(zip(hypotheses, references)):
    out[
      row,
      min(
        int(confidence * BINS),
        BINS - 1,
      ),
    ] = label == reference, confidence, 1
  return out.reshape(len(hypotheses), -1)


def _expected_calibration_error(sums) -> np.ndarray:
  right, confidence, _ = np.moveaxis(
    sums.reshape(*sums.shape[:-1], BINS, 3),
    -1,
    0,
  )
  return np.abs(right - confidence).sum(-1) / sums.reshape(
    *sums.shape[:-1],
    BINS,
    3,
  )[..., 2].sum(-1)


def _numbers(hypotheses, references) -> tuple[np.ndarray, np.ndarray]:
  return np.array(hypotheses, float), np.array([reference for (reference,) in references], float)


def _absolute_error(hypotheses, references) -> np.ndarray:
  said, true = _numbers(hypotheses, references)
  return np.stack([np.abs(said - true), np.ones(len(said))], 1)


def _moments(hypotheses, references) -> np.ndarray:
  said, true = _numbers(hypotheses, references)
  return np.stack(
    [said, true, said**2, true**2, said * true, np.ones(len(said))],
    1,
  )


def _pearson(sums) -> np.ndarray:
  x, y, xx, yy, xy, n = np.moveaxis(np.asarray(sums), -1, 0)
  spread = np.maximum(
    (xx - x * x / n) * (yy - y * y / n),
    0,
  )
  return np.where(
    spread > 0,
    (xy - x * y / n) / np.sqrt(np.where(spread > 0, spread, 1)),
    0.0,
  )


def _rounded(limit: int):
  """Right when both round to the same whole number within -limit..limit (half to even, as numpy and MMSA do)."""

  def statistics(hypotheses, references) -> np.ndarray:
    said, true = (
      np.round(np.clip(values, -limit, limit)) for values in _numbers(hypotheses, references)
    )
    return np.stack([said == true, np.ones(len(said))], 1).astype(float)

  return statistics


def _signs(zeros: bool):
  """Confusion [N, 6] of negative and not (zeros: with the examples whose label is 0), or of positive and not without these."""

  def statistics(hypotheses, references) -> np.ndarray:
    said, true = _numbers(hypotheses, references)
    positive = [(values >= 0) if zeros else (values > 0) for values in (said, true)]
    out = np.zeros((len(said), 2, 3))
    out[np.arange(len(said)), positive[1].astype(int), positive[0].astype(int)] = 1
    return (out * (zeros | (true != 0))[:, None, None]).reshape(len(said), -1)

  return statistics


def _accuracy_of_table(sums) -> np.ndarray:
  return (sums[..., 0] + sums[..., 4]) / sums.sum(-1)


LABEL_METRICS = {
  'accuracy': Metric('share of right labels', _correct, view='label'),
  'macro_f1': Metric('mean F1 of the classes', confusion, macro_f1, 'label'),
  'weighted_f1': Metric(
    'mean F1 of the classes, each as heavy as it is frequent', confusion, weighted_f1, 'label'
  ),
  'calibration_error': Metric(
    f'expected calibration error, {BINS} bins of equal width (Guo et al. 2017)',
    _calibration,
    _expected_calibration_error,
    'confidence',
  ),
  'mae': Metric('mean absolute error', _absolute_error, view='value'),
  'pearson': Metric("Pearson's r", _moments, _pearson, 'value'),
  'acc_7': Metric('share equal after rounding within -3..3 (MMSA)', _rounded(3), view='value'),
  'acc_5': Metric('share equal after rounding within -2..2 (MMSA)', _rounded(2), view='value'),
  'acc_2_has0': Metric(
    'accuracy of negative or not, all examples (MMSA Has0)',
    _signs(True),
    _accuracy_of_table,
    'value',
  ),
  'f1_has0': Metric(
    'weighted F1 of negative or not, all examples (MMSA Has0)', _signs(True), weighted_f1, 'value'
  ),
  'acc_2_non0': Metric(
    'accuracy of positive or negative, without labels of 0 (MMSA Non0)',
    _signs(False),
    _accuracy_of_table,
    'value',
  ),
  'f1_non0': Metric(
    'weighted F1 of positive or negative, without labels of 0 (MMSA Non0)',
    _signs(False),
    weighted_f1,
    'value',
  ),
}
