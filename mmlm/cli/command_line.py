"""Words on the command line -> a command and its options."""

import dataclasses

from absl import flags

from mmlm.cli.flags import (
  COMMANDS,
  RENAMED,
  Command,
  command_help,
  flags_of,
  general_help,
  positional_of,
  usage,
)
from mmlm.utils.choices import nearest
from mmlm.utils.errors import UserError

DEFINERS = {
  str: flags.DEFINE_string,
  int: flags.DEFINE_integer,
  float: flags.DEFINE_float,
  bool: flags.DEFINE_boolean,
  list[str]: flags.DEFINE_list,
}
HELP_WORDS = {'--help', '-h', '-help'}


class HelpRequested(Exception):
  """--help was given; the message is the help."""


def parse(argv: list[str]) -> tuple[str, Command]:
  """Returns the name of the command in `argv` (with the program first) and its options.

  Raises:
    HelpRequested: a word is --help.
    UserError: an unknown command or flag, a missing argument, a value of the wrong type.
  """
  words = argv[1:]
  if words and not words[0].startswith('-'):
    name = words.pop(0)
    _check_name(name)
    help_text = command_help
  else:
    name = 'quick_start'
    help_text = _general_help
  if HELP_WORDS & set(words):
    raise HelpRequested(help_text(name))
  command = COMMANDS[name]
  settings = [word for word in words if word.startswith('--config.')]
  others = [word for word in words if not word.startswith('--config.')]
  values, rest = _parse_flags(name, others)
  values |= _positional(name, rest, values)
  return name, command(**values, settings=_parse_settings(name, settings))


def _general_help(name: str) -> str:
  return general_help()


def _check_name(name: str) -> None:
  if name in RENAMED:
    raise UserError(f'{name} has become `./launch.sh {RENAMED[name]}`.')
  if name not in COMMANDS:
    raise UserError(
      f'no command {name!r}. Nearest: {nearest(name, COMMANDS)!r}. `./launch.sh --help` shows all.'
    )


def _parse_flags(name: str, words: list[str]) -> tuple[dict, list[str]]:
  """Returns {flag: value} and the positional arguments."""
  command = COMMANDS[name]
  values = flags.FlagValues()
  names = []
  for field in flags_of(command):
    default = field.default
    if field.default_factory is not dataclasses.MISSING:
      default = field.default_factory()
    is_required = default is dataclasses.MISSING
    if is_required:
      default = None
    define = DEFINERS[field.type]
    define(field.name, default, '', flag_values=values, required=is_required)
    names.append(field.name)
  if _takes_config(command):
    flags.DEFINE_string('config', '', '', flag_values=values)
    names.append('config')
  try:
    rest = values([name, *words])[1:]
  except flags.Error as error:
    raise UserError(f'{name}: {error} See `./launch.sh {name} --help`.') from None
  return {flag: values[flag].value for flag in names}, rest


def _takes_config(command: type[Command]) -> bool:
  return any(field.name == 'config' for field in positional_of(command))


def _positional(name: str, words: list[str], values: dict) -> dict:
  """Returns {argument: value}; `values` has the flag --config where it was given."""
  command = COMMANDS[name]
  if values.get('config'):
    if words:
      raise UserError(
        f'{name}: the config is given twice, as {words[0]} and as --config={values["config"]}. '
        'Leave out one.'
      )
    words = [values['config']]
  fields = positional_of(command)
  result = {}
  for field in fields:
    if field.type is str and words:
      result[field.name], *words = words
    elif field.type is not str and (words or field.metadata['optional']):
      result[field.name] = words
      words = []
  if words or len(result) < len(fields):
    expected = usage(name).removeprefix(name).strip() or 'no argument'
    given = [*result.values(), *words]
    raise UserError(f'{name} takes {expected}, not {given}. See `./launch.sh {name} --help`.')
  return result


def _parse_settings(name: str, words: list[str]) -> dict[str, str]:
  """Returns {key: value} of the words --config.KEY=VALUE."""
  settings = {}
  for word in words:
    key, equals, value = word.removeprefix('--config.').partition('=')
    if not equals:
      raise UserError(f'{word}: write it as --config.KEY=VALUE.')
    settings[key] = value
  if settings and not COMMANDS[name].reads_config:
    raise UserError(f'{name} reads no config: remove {", ".join(words)}.')
  return settings
