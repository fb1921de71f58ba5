"""Small forms of configs: a generated data set, a few steps and small parts; seconds on a CPU."""

from ml_collections import ConfigDict

from mmlm.config.smoke_forms import smoke as small_form


def smoke(config: ConfigDict) -> ConfigDict:
  """Returns the small form of a config, as its task defines it."""
  return small_form(config)
