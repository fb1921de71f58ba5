"""Small forms of configs: a generated data set, a few steps and small parts; seconds on a CPU."""

from ml_collections import ConfigDict

import mmlm.word_vectors  # noqa: F401 registers its task
from mmlm.config.smoke_forms import smoke as small_form
from mmlm.tasks import TASKS


def smoke(config: ConfigDict) -> ConfigDict:
  """Returns the small form of a config, as its task defines it."""
  task = TASKS[config.task]
  if 'smoke' in dir(task):
    return task.smoke(config)
  return small_form(config)
