"""The config of an experiment: its schema, how it is read, completed and checked."""

from mmlm.config.schema import (
  NOT_PART_OF_THE_RUN,
  ROOT,
  chosen,
  complete,
  default_config,
  from_dict,
  load_config,
  override,
  parse_arg,
  parse_duration,
  smoke,
  to_steps,
)

__all__ = [
  'NOT_PART_OF_THE_RUN',
  'ROOT',
  'chosen',
  'complete',
  'default_config',
  'from_dict',
  'load_config',
  'override',
  'parse_arg',
  'parse_duration',
  'smoke',
  'to_steps',
]
