"""Tasks: which fields they read, their loss, how they answer, their metrics. `TASKS` maps the names of configs to them."""

import pathlib

from mmlm.tasks.base import Pipeline, Task
from mmlm.tasks.labeling import LabelPrediction
from mmlm.tasks.language_modeling import LanguageModel, MaskedLanguageModel
from mmlm.tasks.speech import SpeechToText
from mmlm.tasks.text_generation import TextGeneration
from mmlm.utils.run_dir import read_json

# A package above this one adds its task when it is imported (mmlm/word_vectors).
TASKS: dict[str, Task] = {
  'captioning': TextGeneration(
    metrics=('bleu_1', 'bleu_2', 'bleu_3', 'bleu_4', 'rouge_l', 'cider_d', 'meteor')
  ),
  'translation': TextGeneration(metrics=('bleu_words', 'bleu', 'chrf', 'ter')),
  'recognition': SpeechToText(metrics=('wer', 'cer')),
  'speech_translation': SpeechToText(metrics=('bleu', 'chrf')),
  'language_model': LanguageModel(
    metrics=('perplexity_word', 'bits_per_character', 'bits_per_byte')
  ),
  'masked_language_model': MaskedLanguageModel(metrics=('perplexity_masked', 'masked_accuracy')),
  'classification': LabelPrediction(
    metrics=('accuracy', 'macro_f1', 'weighted_f1', 'calibration_error'), heads=('classifier',)
  ),
  'regression': LabelPrediction(
    metrics=('mae', 'pearson', 'acc_7', 'acc_5', 'acc_2_has0', 'f1_has0', 'acc_2_non0', 'f1_non0'),
    heads=('regressor',),
  ),
}


def pipeline_of_run(folder: str) -> Pipeline | None:
  """Returns the pipeline of the task of a run folder; None where it is that of mmlm.experiment."""
  path = pathlib.Path(folder) / 'config.json'
  if not path.is_file():
    return None
  name = read_json(path).get('task')
  return TASKS[name].pipeline if name in TASKS else None
