"""All metrics by name.

A new metric is a `Metric` in a module of this folder and a line in METRICS.
"""

from mmlm.evaluation.metrics import (
  caption_metrics,
  label_metrics,
  language_metrics,
  speech_metrics,
  translation_metrics,
)
from mmlm.evaluation.metrics.metric import Metric
from mmlm.utils.choices import one_of

METRICS: dict[str, Metric] = {
  # captions
  'bleu_1': caption_metrics.bleu(1),
  'bleu_2': caption_metrics.bleu(2),
  'bleu_3': caption_metrics.bleu(3),
  'bleu_4': caption_metrics.bleu(4),
  'rouge_l': caption_metrics.ROUGE_L,
  'cider_d': caption_metrics.CIDER_D,
  'meteor': caption_metrics.METEOR,
  'exact_match': caption_metrics.EXACT_MATCH,
  'word_f1': caption_metrics.WORD_F1,
  # classes and numbers
  'accuracy': label_metrics.ACCURACY,
  'macro_f1': label_metrics.MACRO_F1,
  'weighted_f1': label_metrics.WEIGHTED_F1,
  'calibration_error': label_metrics.CALIBRATION_ERROR,
  'mae': label_metrics.MAE,
  'pearson': label_metrics.PEARSON,
  'acc_7': label_metrics.ACC_7,
  'acc_5': label_metrics.ACC_5,
  'acc_2_has0': label_metrics.ACC_2_HAS0,
  'f1_has0': label_metrics.F1_HAS0,
  'acc_2_non0': label_metrics.ACC_2_NON0,
  'f1_non0': label_metrics.F1_NON0,
  # speech recognition
  'wer': speech_metrics.WER,
  'wer_normalized': speech_metrics.WER_NORMALIZED,
  'cer': speech_metrics.CER,
  # language models
  'perplexity_word': language_metrics.PERPLEXITY_WORD,
  'bits_per_character': language_metrics.BITS_PER_CHARACTER,
  'nats_per_character': language_metrics.NATS_PER_CHARACTER,
  'bits_per_byte': language_metrics.BITS_PER_BYTE,
  'perplexity_masked': language_metrics.PERPLEXITY_MASKED,
  'masked_accuracy': language_metrics.MASKED_ACCURACY,
  # translation
  'bleu': translation_metrics.BLEU,
  'bleu_words': translation_metrics.BLEU_WORDS,
  'chrf': translation_metrics.CHRF,
  'ter': translation_metrics.TER,
}
# What validation measures without predictions.
LOSSES = ('loss', 'perplexity')


def higher_is_better(score_name: str) -> bool:
  """Returns the direction of a score of validation: a metric, 'loss' or 'perplexity'.

  Args:
    score_name: with or without the split before it, as 'valid/wer'.

  Raises:
    UserError: there is no such score.
  """
  _, _, name = score_name.rpartition('/')
  one_of('train.monitor', name, (*LOSSES, *METRICS))
  return name in METRICS and METRICS[name].higher_is_better
