"""The config of an experiment: its schema, how it is read, completed and checked."""

from mmlm.config.durations import parse_duration, to_steps
from mmlm.config.keys import options_in, without_resumable
from mmlm.config.load import ROOT, chosen, from_dict, load_config, parse_arg
from mmlm.config.schema import HEAD_CLASSES, default_config
from mmlm.config.validate import complete, override

__all__ = [
  'HEAD_CLASSES',
  'ROOT',
  'chosen',
  'complete',
  'default_config',
  'from_dict',
  'load_config',
  'options_in',
  'override',
  'parse_arg',
  'parse_duration',
  'to_steps',
  'without_resumable',
]
