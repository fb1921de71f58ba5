"""Small forms of configs; seconds on a CPU."""

from ml_collections import ConfigDict

from mmlm.tasks import TASKS
from mmlm.utils.choices import one_of


def smoke(config: ConfigDict) -> ConfigDict:
  """Returns the small form of a config, as its task defines it."""
  return TASKS[one_of('task', config.task, TASKS)].smoke(config)
