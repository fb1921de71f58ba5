"""Metrics of labels and scores, beside plain definitions."""

import numpy as np
import pytest
from scipy import stats

from mmlm.evaluation.ablation import SHARES, missing_curve
from mmlm.evaluation.metrics import METRICS, views
from mmlm.evaluation.metrics.label_metrics import confusion_table
from mmlm.evaluation.score_predictions import Predictions, score_predictions


def labels(seed=0, count=200, classes='abc'):
  rng = np.random.default_rng(seed)
  true = rng.choice(list(classes), count, p=[0.6, 0.3, 0.1][: len(classes)])
  said = np.where(rng.random(count) < 0.7, true, rng.choice([*classes, 'never asked for'], count))
  result = []
  for i, (a, b) in enumerate(zip(said, true)):
    result.append(
      {
        'id': str(i),
        'hypothesis': str(a),
        'references': [str(b)],
        'score': float(rng.uniform(0.3, 1)),
      }
    )
  return result


def values(seed=0, count=300):
  rng = np.random.default_rng(seed)
  true = np.round(rng.uniform(-3, 3, count) * 5) / 5
  true[:40] = 0
  said = true + rng.normal(size=count)
  result = []
  for i, (a, b) in enumerate(zip(said, true)):
    result.append(
      {'id': str(i), 'hypothesis': '', 'references': [str(float(b))], 'score': float(a)}
    )
  return result


def value(rows, name):
  return score_predictions(Predictions(rows), [name], 1)[name]['value']


def f1_by_hand(true, said, name):
  hit = sum(a == b == name for a, b in zip(true, said))
  return 2 * hit / (sum(a == name for a in true) + sum(b == name for b in said))


def test_accuracy_and_f1_by_hand():
  rows = labels()
  true = [row['references'][0] for row in rows]
  said = [row['hypothesis'] for row in rows]
  each = {name: f1_by_hand(true, said, name) for name in 'abc'}
  assert value(rows, 'accuracy') == pytest.approx(np.mean([a == b for a, b in zip(true, said)]))
  assert value(rows, 'macro_f1') == pytest.approx(np.mean(list(each.values())))
  assert value(rows, 'weighted_f1') == pytest.approx(sum(each[name] for name in true) / len(true))


def test_calibration_error_by_hand():
  rows = labels()
  confidence = np.array([row['score'] for row in rows])
  right = np.array([row['hypothesis'] == row['references'][0] for row in rows])
  bins = np.minimum((confidence * 15).astype(int), 14)
  expected = sum(
    (bins == b).mean() * abs(right[bins == b].mean() - confidence[bins == b].mean())
    for b in set(bins)
  )
  assert value(rows, 'calibration_error') == pytest.approx(expected)


def test_scores_of_sentiment_by_mmsa_s_definitions():
  rows = values()
  true = np.array([float(row['references'][0]) for row in rows])
  said = np.array([row['score'] for row in rows])
  assert value(rows, 'mae') == pytest.approx(np.abs(true - said).mean())
  assert value(rows, 'pearson') == pytest.approx(stats.pearsonr(true, said)[0])
  for limit, name in ((3, 'acc_7'), (2, 'acc_5')):
    assert value(rows, name) == pytest.approx(
      (np.round(np.clip(true, -limit, limit)) == np.round(np.clip(said, -limit, limit))).mean()
    )
  assert value(rows, 'acc_2_has0') == pytest.approx(((true >= 0) == (said >= 0)).mean())
  kept = true != 0
  assert value(rows, 'acc_2_non0') == pytest.approx(((true > 0) == (said > 0))[kept].mean())
  for name, a, b in (
    ('f1_has0', true >= 0, said >= 0),
    ('f1_non0', (true > 0)[kept], (said > 0)[kept]),
  ):
    expected = sum(f1_by_hand(a, b, kind) * (a == kind).mean() for kind in (True, False))
    assert value(rows, name) == pytest.approx(expected), name


def test_a_constant_answer_has_no_correlation():
  assert value([row | {'score': 0.5} for row in values()], 'pearson') == 0


@pytest.mark.parametrize(
  'name',
  [
    'accuracy',
    'macro_f1',
    'weighted_f1',
    'calibration_error',
    'mae',
    'pearson',
    'acc_7',
    'f1_non0',
  ],
)
def test_resampled_values_are_those_of_the_resampled_rows(name):
  if METRICS[name].view in (views.labels, views.confidences):
    rows = labels()
  else:
    rows = values()
  statistics = Predictions(rows).statistics(name)
  drawn = np.random.default_rng(1).integers(len(rows), size=len(rows))
  assert METRICS[name].value(statistics[drawn].sum(0)) == pytest.approx(
    value([rows[i] for i in drawn], name)
  )
  both = METRICS[name].value(np.stack([statistics.sum(0), statistics[drawn].sum(0)]))
  assert both.shape == (2,)


def test_a_confusion_table_counts_every_prediction():
  rows = labels()
  names, table = confusion_table(rows)
  assert (
    table.sum() == len(rows) and names == ['a', 'b', 'c', 'never asked for'] and not table[3].any()
  )
  assert table[1, 0] == sum(row['references'] == ['b'] and row['hypothesis'] == 'a' for row in rows)
  assert np.trace(table) / len(rows) == pytest.approx(value(rows, 'accuracy'))


# Missing inputs


@pytest.mark.parametrize('name', ['accuracy', 'macro_f1'])
def test_a_curve_goes_from_all_inputs_to_none(name):
  complete = labels(1)
  without = [row | {'hypothesis': 'a'} for row in complete]
  curve = missing_curve(complete, without, name)
  assert [point['share'] for point in curve] == list(SHARES)
  for point, rows in ((curve[0], complete), (curve[-1], without)):
    assert (
      point['low']
      == pytest.approx(point['value'])
      == pytest.approx(point['high'])
      == pytest.approx(value(rows, name))
    )
  assert all(
    point['low'] <= point['value'] + 1e-9 and point['value'] <= point['high'] + 1e-9
    for point in curve
  )
  if name == 'accuracy':  # a mean over examples falls evenly
    expected = [(1 - share) * curve[0]['value'] + share * curve[-1]['value'] for share in SHARES]
    np.testing.assert_allclose([point['value'] for point in curve], expected, atol=0.01)


def test_parts_of_an_example_lack_an_input_together():
  complete = []
  for video in range(2):
    for k in range(50):
      complete.append(
        {
          'id': f'{video}_{k}',
          'hypothesis': 'a',
          'references': ['a'],
          'input': {'audio': str(video)},
        }
      )
  without = [row | {'hypothesis': 'b'} for row in complete]
  (half,) = [
    point for point in missing_curve(complete, without, 'accuracy') if point['share'] == 0.5
  ]
  assert half['low'] == half['value'] == half['high'] == 0.5  # one whole video of the two
