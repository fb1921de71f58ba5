"""The registry of metrics: each states its direction and its view."""

import pytest

from mmlm.evaluation.metrics import METRICS, higher_is_better
from mmlm.evaluation.metrics.metric import Metric
from mmlm.utils.errors import UserError

LOWER_IS_BETTER = {
  'ter',
  'wer',
  'wer_normalized',
  'cer',
  'mae',
  'calibration_error',
  'perplexity_word',
  'bits_per_character',
  'bits_per_byte',
  'nats_per_character',
  'perplexity_masked',
}


def test_error_rates_and_only_these_are_better_when_lower():
  assert {name for name in METRICS if not higher_is_better(name)} == LOWER_IS_BETTER


@pytest.mark.parametrize('name', ['loss', 'perplexity', 'dev/loss', 'a/b/wer'])
def test_losses_and_scores_of_a_split_have_a_direction(name):
  assert not higher_is_better(name)
  assert higher_is_better('a/b/cider_d')


def test_a_score_that_does_not_exist_has_no_direction():
  with pytest.raises(UserError, match="no 'blue_4'. Nearest: 'bleu_4'"):
    higher_is_better('valid/blue_4')


def test_a_metric_without_a_direction_is_refused():
  with pytest.raises(TypeError, match='higher_is_better'):
    Metric(definition='', view=METRICS['wer'].view, statistics=METRICS['wer'].statistics)
