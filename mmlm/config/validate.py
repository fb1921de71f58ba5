"""Completes and checks configs, and applies `--config.KEY=VALUE` to them."""

import ast
import dataclasses
import re
from typing import Any

from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from mmlm.config.durations import parse_duration
from mmlm.config.keys import options_of_group
from mmlm.config.schema import Config
from mmlm.utils.choices import nearest
from mmlm.utils.errors import UserError
from mmlm.utils.options import Option

BOOLEANS = {'true': 'True', 'false': 'False'}
COMMA_OUTSIDE_BRACKETS = r',(?![^(]*\))'


def complete(config: ConfigDict, dropping: bool = False) -> ConfigDict:
  """Returns a locked copy with every option of the parts chosen by name, checked.

  Args:
    dropping: leave out options that a part does not have, instead of refusing them: they belonged
      to another part, before its name was changed.

  Raises:
    UserError: an unknown name or key, with the nearest valid one; a value of the wrong type or
      outside its limits; a text that is not a duration.
  """
  values = _complete_group('', Option(section=Config), config.to_dict(), dropping)
  _check_splits(values['data']['splits'])
  return ConfigDict(values).lock()


def _check_splits(splits: dict) -> None:
  has_all = set(splits) == {'train', 'valid', 'test'}
  if not has_all or not isinstance(splits['train'], str):
    raise UserError(
      f"data.splits={splits}: expected one split as 'train', one or several as 'valid' and 'test'."
    )


def _complete_group(key: str, group: Option, value: dict, dropping: bool) -> dict:
  """Returns a group of keys with the defaults of those that `value` lacks."""
  options = options_of_group(key, group, value)
  unknown = [name for name in value if name not in options]
  if unknown and not dropping:
    wrong = _path(key, unknown[0])
    right = _path(key, nearest(unknown[0], options))
    raise UserError(f'{wrong}: unknown key. Nearest: {right}.')
  completed = {}
  for name, child in options.items():
    path = _path(key, name)
    current = value.get(name, _default_of(child))
    completed[name] = _complete_value(path, child, current, dropping)
  return completed


def _complete_value(key: str, declared: Option, value: Any, dropping: bool) -> Any:
  if not declared.is_group:
    value = checked_type(key, value, declared.default)
    if declared.duration:
      parse_duration(value, key, declared.share)
    declared.check(key, value)
    return value
  if not isinstance(value, dict):
    default = _default_of(declared)
    raise UserError(f'{key}={value!r}: expected a group with keys, such as {default}.')
  if declared.free_keys:
    return value
  return _complete_group(key, declared, value, dropping)


def _default_of(declared: Option) -> Any:
  if declared.section is not None:
    return dataclasses.asdict(declared.section())
  return declared.default


def _path(key: str, name: str) -> str:
  return f'{key}.{name}'.lstrip('.')


def checked_type(key: str, value: Any, default: Any) -> Any:
  """Returns `value` if it has the type of `default`; an int becomes a float, a list a tuple.

  Raises:
    UserError: it has another type.
  """
  if isinstance(default, float) and type(value) is int:
    value = float(value)
  if isinstance(default, tuple) and type(value) is list:
    value = tuple(value)
  if type(value) is not type(default):
    raise UserError(f'{key}={value!r}: expected {type(default).__name__}, for example {default!r}.')
  return value


def override(config: ConfigDict, assignments: dict[str, str]) -> ConfigDict:
  """Returns the completed config with assignments such as {'optimizer.learning_rate': '3e-4'}.

  Raises:
    UserError: an unknown key, or a text that is no value of the key's type.
  """
  # The names of parts come first: they decide which options exist.
  names = {}
  for key, text in assignments.items():
    if key.startswith('model.') and key.endswith('.name'):
      names[key] = text
  config = complete(_assign(complete(config), names), dropping=True)
  return complete(_assign(config, assignments))


def _assign(config: ConfigDict, assignments: dict[str, str]) -> ConfigDict:
  values = flatten_dict(config.to_dict(), sep='.')
  for key, text in assignments.items():
    _check_key(key, values)
    values[key] = _parse_value(key, text, values[key])
  return ConfigDict(unflatten_dict(values, sep='.'))


def _check_key(key: str, values: dict) -> None:
  """Raises UserError where `key` is not a key of the flat dict `values`."""
  if key in values:
    return
  group = f'{key}.'
  last = key.split('.')[-1]
  below = []
  same_ending = []
  for name in values:
    if name.startswith(group):
      below.append(name.removeprefix(group))
    if name.split('.')[-1] == last:
      same_ending.append(name)
  if below:
    raise UserError(f'--config.{key} is a group with the keys {sorted(below)}: name one of them.')
  right = nearest(key, same_ending or values)
  raise UserError(f'--config.{key}: unknown key. Nearest: --config.{right}.')


def _parse_value(key: str, text: str, current: Any) -> Any:
  """Returns the value that `text` stands for, of the type of the key's current value."""
  if isinstance(current, str):
    return text
  try:
    value = ast.literal_eval(BOOLEANS.get(text.lower(), text))
  except (ValueError, SyntaxError):
    value = text
  if isinstance(current, tuple) and not isinstance(value, tuple | list):
    if isinstance(value, str):
      value = tuple(re.split(COMMA_OUTSIDE_BRACKETS, value))
    else:
      value = (value,)
  return checked_type(f'--config.{key}', value, current)
