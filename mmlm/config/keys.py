"""The options behind the keys of one config: those of the schema and those of its parts."""

from typing import Any

from ml_collections import ConfigDict

from mmlm.config.schema import Config, Model
from mmlm.utils.choices import one_of
from mmlm.utils.options import Option, options_of

ADDED_BY_FLAX = ('parent', 'name')


def options_of_part(cls: type) -> dict[str, Option]:
  """Returns the options that a config may set of an encoder, a fusion or a head.

  These are the fields with a default. Left out are `parent` and `name`, which flax adds, what the
  section `model` sets for all parts (dim, dropout, dtype), and what parts share, such as an
  embedding table, whose default is None.
  """
  set_for_all = options_of(Model)
  options = {}
  for name, declared in options_of(cls).items():
    is_passed = name in ADDED_BY_FLAX or name in set_for_all
    if not is_passed and declared.default is not None:
      options[name] = declared
  return options


def options_of_group(key: str, group: Option, value: dict) -> dict[str, Option]:
  """Returns {name: option} of the keys below `key`, a section, a part or the parts of a config.

  Raises:
    UserError: a part is chosen by a name that does not exist.
  """
  if group.section is not None:
    return options_of(group.section)
  if group.part_of_each_key:
    part = Option({'name': '...'}, parts=group.parts)
    return dict.fromkeys(value, part)
  assert group.parts is not None, f'{key} has free keys'
  name: Any = value.get('name')
  if group.may_be_empty and not name:
    return {'name': Option('')}
  one_of(f'{key}.name', name, group.parts)
  options = {'name': Option(name)}
  options |= options_of_part(group.parts[name])
  return options


def options_in(config: ConfigDict) -> dict[str, Option]:
  """Returns {path: option} of the keys of a completed config, such as 'model.head.layers'.

  Keys that are the user's, such as those below data.fields, are not in it.
  """
  options: dict[str, Option] = {}
  _collect('', Option(section=Config), config.to_dict(), options)
  return options


def _collect(key: str, group: Option, value: dict, options: dict[str, Option]) -> None:
  """Adds the options below `key` to `options`."""
  for name, child in options_of_group(key, group, value).items():
    path = f'{key}.{name}'.lstrip('.')
    if not child.is_group:
      options[path] = child
    elif not child.free_keys:
      _collect(path, child, value[name], options)


def without_resumable(values: dict, cls: type = Config) -> dict:
  """Returns the keys of a config's dict that must stay when a run is continued."""
  options = options_of(cls)
  fixed = {}
  for name, value in values.items():
    declared = options.get(name, Option())
    if declared.resumable:
      continue
    if declared.section is not None:
      value = without_resumable(value, declared.section)
    fixed[name] = value
  return fixed
