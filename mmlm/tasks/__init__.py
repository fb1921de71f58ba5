"""Tasks: what they read, their loss, their answers and their metrics.

A new task is a class and one line in TASKS, which maps the names of configs to tasks.
"""

import pathlib

from mmlm.tasks.base import Pipeline, Task
from mmlm.tasks.label_prediction import Classification, Regression
from mmlm.tasks.language_modeling import LanguageModel
from mmlm.tasks.masked_language_modeling import MaskedLanguageModel
from mmlm.tasks.speech_to_text import Recognition, SpeechTranslation
from mmlm.tasks.text_generation import Captioning, Translation
from mmlm.utils.run_dir import read_json

# A package above this one adds its task when it is imported (mmlm/word_vectors).
TASKS: dict[str, Task] = {
  'captioning': Captioning(),
  'translation': Translation(),
  'recognition': Recognition(),
  'speech_translation': SpeechTranslation(),
  'language_model': LanguageModel(),
  'masked_language_model': MaskedLanguageModel(),
  'classification': Classification(),
  'regression': Regression(),
}


def task_of(config: dict) -> Task:
  """Returns the task of the config of a run folder; captioning, the default, without one."""
  return TASKS.get(config.get('task', ''), TASKS['captioning'])


def pipeline_of_run(folder: str) -> Pipeline | None:
  """Returns the pipeline of the task of a run folder; None where it is that of mmlm.experiment."""
  path = pathlib.Path(folder) / 'config.json'
  if not path.is_file():
    return None
  name = read_json(path).get('task')
  return TASKS[name].pipeline if name in TASKS else None
