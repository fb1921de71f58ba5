"""Reads config files and the arguments after their colon, `path.py:smoke,language=zh`."""

import inspect
import pathlib
import runpy
import sys
import traceback
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from mmlm.utils.choices import nearest, one_of
from mmlm.utils.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
TRUE = ('', '1', 'true', 'yes')


def parse_arg(arg: str, **spec: Any) -> ConfigDict:
  """Returns the values of a config file's argument, such as 'smoke,language=zh'.

  Args:
    spec: the keys with their defaults, which give their types. A bare name means True.

  Raises:
    UserError: an unknown key, or a text that is no value of the key's type.
  """
  values = ConfigDict(spec)
  for part in filter(None, (arg or '').split(',')):
    key, _, text = part.partition('=')
    if key not in spec:
      raise UserError(f'unknown argument {key!r} after the colon. Nearest: {nearest(key, spec)!r}.')
    values[key] = _parse(key, text, type(spec[key]))
  return values


def _parse(key: str, text: str, kind: type) -> Any:
  if kind is bool:
    return text.lower() in TRUE
  try:
    return kind(text)
  except ValueError:
    raise UserError(f'argument {key}={text!r}: expected {kind.__name__}.') from None


def chosen(modalities: str, options: Mapping[str, Any]) -> dict[str, Any]:
  """Returns {modality: options[modality]} of an argument such as `modalities=text+audio`."""
  result = {}
  for modality in modalities.split('+'):
    one_of('modalities', modality, options)
    result[modality] = options[modality]
  return result


def load_config(spec: str) -> ConfigDict:
  """Returns the config of 'path.py' or 'path.py:arg'; relative paths may also start at ROOT.

  Raises:
    UserError: there is no such file, or an error in it, with its line.
  """
  path, _, arg = spec.partition(':')
  file = _find_file(path)
  _make_importable(ROOT)
  try:
    module = runpy.run_path(str(file))
    config = module['get_config'](arg)
    if not isinstance(config, ConfigDict):
      raise TypeError(f'get_config returns {config!r}, not the config')
    config.name = spec
    config.card = inspect.cleandoc(module['__doc__'] or '')
  except Exception as error:  # whatever a user's file raises
    raise UserError(_explain(error, path, file)) from None
  return config


def _find_file(path: str) -> pathlib.Path:
  for file in (pathlib.Path(path), ROOT / path):
    if file.is_file() and file.suffix == '.py':
      return file
  choices = []
  for file in ROOT.glob('configs/*/*.py'):
    choices.append(str(file.relative_to(ROOT)))
  raise UserError(f'no config file {path!r}. Nearest: {nearest(path, choices)!r}.')


def _make_importable(folder: pathlib.Path) -> None:
  """Lets config files import each other, `from configs.smoke import smoke`, wherever we run."""
  if str(folder) not in sys.path:
    sys.path.append(str(folder))


def _explain(error: Exception, path: str, file: pathlib.Path) -> str:
  """Returns 'path, line 5: NameError: ...' in one line."""
  place = path
  if line := _line_of(error, str(file)):
    place = f'{path}, line {line}'
  reason = error.args[0] if error.args else error
  text = ' '.join(str(reason).split())
  if not isinstance(error, UserError):
    text = f'{type(error).__name__}: {text}'
  return f'{place}: {text}'


def _line_of(error: Exception, file: str) -> int | None:
  """Returns the line of `file` where an error was raised last."""
  if isinstance(error, SyntaxError):
    return error.lineno
  for frame in reversed(traceback.extract_tb(error.__traceback__)):
    if frame.filename == file:
      return frame.lineno
  return None


def from_dict(values: dict) -> ConfigDict:
  """Returns a config read back from config.json: JSON has lists where configs have tuples."""
  return ConfigDict(_with_tuples(values))


def _with_tuples(value: Any) -> Any:
  if isinstance(value, list):
    return tuple(map(_with_tuples, value))
  if isinstance(value, dict):
    return {name: _with_tuples(child) for name, child in value.items()}
  return value
