"""Small forms of configs: a generated data set, a few steps and small parts; seconds on a CPU."""

from ml_collections import ConfigDict

from mmlm.config.smoke_forms import smoke as small_form
from mmlm.tasks import TASKS
from mmlm.utils.choices import one_of


def smoke(config: ConfigDict) -> ConfigDict:
  """Returns the small form of a config, as its task defines it."""
  task = TASKS[one_of('task', config.task, TASKS)]
  if 'smoke' in dir(task):
    return task.smoke(config)
  return small_form(config)
