"""Pages: jinja's templates of this folder, with what all of them need, and JSON that a page may hold."""

import json
import math
import pathlib

import jinja2
import markupsafe
from flax.traverse_util import flatten_dict

from mmlm.utils.errors import UserError
from mmlm.utils.run_dir import read_json, read_jsonl, write_atomic

FOLDER = pathlib.Path(__file__).parent


def number(value, plain=False) -> str:
  if not isinstance(value, float):
    return str(value)
  if plain and abs(value) < 100:
    return f'{value:.3g}'
  return f'{value:,.{3 if abs(value) < 100 else 1}f}'


def flat(tree: dict) -> dict:
  """{'model': {'width': 8}} -> {'model.width': 8}"""
  return flatten_dict(tree, sep='.')


def as_json(value) -> markupsafe.Markup:
  """For a script element: no text of it can end the element, and no number is one that JSON lacks."""
  return markupsafe.Markup(
    json.dumps(_finite(value), ensure_ascii=False, separators=(',', ':')).replace('<', r'\u003c')
  )


def _finite(value):
  if isinstance(value, dict):
    return {key: _finite(part) for key, part in value.items()}
  if isinstance(value, (list, tuple)):
    return [_finite(part) for part in value]
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value


def write_page(path, template: str, **content) -> pathlib.Path:
  """Renders a template into `path`, whole or not at all."""
  jinja = jinja2.Environment(
    loader=jinja2.FileSystemLoader(FOLDER),
    autoescape=jinja2.select_autoescape(['jinja']),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  jinja.filters |= {'number': number, 'flatten': flat, 'as_json': as_json}
  write_atomic(path, jinja.get_template(template).render(**content))
  return pathlib.Path(path)


def read_rows(path, keys: tuple) -> list[dict]:
  """Rows of a JSON-lines file that all have some keys; UserError names the line that is none."""
  try:
    rows = read_jsonl(path)
  except OSError as error:
    raise UserError(f'{path}: {error.strerror}.') from None
  except ValueError as error:
    raise UserError(
      f'{path}, line {_bad_line(path)}: not JSON ({error}). What wrote it can write it again.'
    ) from None
  for line, row in enumerate(rows, 1):
    if missing := [key for key in keys if not isinstance(row, dict) or key not in row]:
      raise UserError(f'{path}, line {line}: no {missing[0]!r} in it.')
  return rows


def _bad_line(path) -> int:
  for number, line in enumerate(pathlib.Path(path).read_bytes().splitlines(), 1):
    try:
      json.loads(line)
    except ValueError:
      return number
  return 0


def read_object(path) -> dict:
  """A JSON file that holds an object; {} where there is none."""
  if not pathlib.Path(path).exists():
    return {}
  found = read_json(path)
  if not isinstance(found, dict):
    raise UserError(f'{path}: expected an object, {{...}}.')
  return found
