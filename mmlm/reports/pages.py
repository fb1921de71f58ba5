"""Pages: renders the jinja templates of this folder, and reads the JSON of run folders."""

import json
import math
import pathlib
from typing import Any

import jinja2
import markupsafe
from flax.traverse_util import flatten_dict

from mmlm.tasks.grading import format_number
from mmlm.utils.errors import UserError
from mmlm.utils.run_dir import read_json, read_jsonl, write_atomic

FOLDER = pathlib.Path(__file__).parent


def format_value(value: Any, short: bool = False) -> str:
  """Formats a number of a table; `short` for the axes of plots."""
  if short and isinstance(value, float) and abs(value) < 100:
    return f'{value:.3g}'
  return format_number(value)


def flatten(tree: dict) -> dict:
  """Flattens {'model': {'width': 8}} to {'model.width': 8}."""
  return flatten_dict(tree, sep='.')


def as_json(value: Any) -> markupsafe.Markup:
  """Writes JSON for a script element, which no text of it can end; NaN and infinities are null."""
  text = json.dumps(_without_infinities(value), ensure_ascii=False, separators=(',', ':'))
  return markupsafe.Markup(text.replace('<', r'\u003c'))


def _without_infinities(value: Any) -> Any:
  if isinstance(value, dict):
    return {key: _without_infinities(part) for key, part in value.items()}
  if isinstance(value, (list, tuple)):
    return [_without_infinities(part) for part in value]
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value


def write_page(path: pathlib.Path | str, template: str, **content: Any) -> pathlib.Path:
  """Renders a template into a file, which is written whole or not at all."""
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(FOLDER),
    autoescape=jinja2.select_autoescape(['jinja']),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  environment.filters |= {'number': format_value, 'flatten': flatten, 'as_json': as_json}
  write_atomic(path, environment.get_template(template).render(**content))
  return pathlib.Path(path)


def read_entries(path: pathlib.Path, keys: tuple[str, ...]) -> list[dict]:
  """Reads a JSON-lines file.

  Args:
    keys: keys that each line must have.

  Raises:
    UserError: names the first line that is damaged.
  """
  try:
    entries = read_jsonl(path)
  except OSError as error:
    raise UserError(f'{path}: {error.strerror}.') from None
  except ValueError as error:
    raise UserError(
      f'{path}, line {_damaged_line(path)}: not JSON ({error}). '
      'The command that wrote the file can write it again.'
    ) from None
  for line, entry in enumerate(entries, 1):
    for key in keys:
      if not isinstance(entry, dict) or key not in entry:
        raise UserError(f'{path}, line {line}: no {key!r} in it.')
  return entries


def _damaged_line(path: pathlib.Path) -> int:
  for line_number, line in enumerate(path.read_bytes().splitlines(), 1):
    try:
      json.loads(line)
    except ValueError:
      return line_number
  return 0


def read_object(path: pathlib.Path) -> dict:
  """Reads a JSON file that holds an object; {} if there is no such file."""
  if not path.exists():
    return {}
  content = read_json(path)
  if not isinstance(content, dict):
    raise UserError(f'{path}: expected an object, {{...}}.')
  return content
