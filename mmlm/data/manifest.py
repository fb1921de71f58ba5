"""A user's own files: JSON lines, paths relative to the manifest.

    {"id": "a", "image": "photos/a.jpg", "target": "a dog runs"}          target: a text or a list of texts
    {"id": "b", "image": "photos/b.jpg", "text": "optional", "label": 3}
"""

import hashlib
import json
import pathlib
import sys

from mmlm.data.datasets import progress
from mmlm.data.image import decode_picture
from mmlm.data.sources import Subset
from mmlm.errors import UserError
from mmlm.runs import read_json, write_json


class ManifestSource:
  """The examples of a manifest; every line is checked first, bytes are read when asked for.

  `require`: fields that each line must have ('image', 'text', 'targets', 'label'). Raises UserError with the
  first five errors: bad JSON, a field missing or of the wrong kind, a file that is not there, an id twice, no
  line at all.
  """

  def __init__(self, path, require=('image', 'targets')):
    self.path = pathlib.Path(path)
    try:
      lines = self.path.read_text(encoding='utf-8').splitlines()
    except OSError as error:
      raise UserError(f'{path}: {error.strerror}. A manifest looks like this:\n{__doc__}') from None
    except UnicodeDecodeError as error:
      raise UserError(f'{path}: not UTF-8 (byte {error.start}).') from None
    self.rows, errors, seen = [], [], {}
    for number, line in enumerate(lines, 1):
      if not line.strip():
        continue
      try:
        row = _example(line, self.path.parent, require)
        if (first := seen.setdefault(row['id'], number)) != number:
          raise ValueError(f'the id {row["id"]!r} stands already in line {first}')
        self.rows.append(row)
      except ValueError as error:
        errors.append(f'{path}, line {number}: {error}')
    if errors:
      more = f'\n... {len(errors)} errors in all' if len(errors) > 5 else ''
      raise UserError('\n'.join(errors[:5]) + more)
    if not self.rows:
      raise UserError(f'{path}: no example in it.')

  def __len__(self):
    return len(self.rows)

  def __getitem__(self, i) -> dict:
    row = dict(self.rows[i])
    if 'image' in row:
      row['image'] = pathlib.Path(row['image']).read_bytes()
    return row


def _example(line, folder, require) -> dict:
  """A line as an example whose image is still a path; ValueError says what is wrong."""
  try:
    row = json.loads(line)
  except json.JSONDecodeError as error:
    raise ValueError(f'bad JSON at column {error.colno} ({error.msg})') from None
  if not isinstance(row, dict):
    raise ValueError('not a JSON object')
  if not isinstance(row.get('id'), (str, int)) or row['id'] == '':
    raise ValueError("no 'id'")
  for key, kind in (('image', str), ('text', str), ('label', (int, float))):
    if not isinstance(row.get(key), kind) and row.get(key) is not None:
      raise ValueError(f'{key!r} must be {"a number" if key == "label" else "a text"}, not {row[key]!r}')
  example = {'id': str(row['id'])} | {key: row[key] for key in ('text', 'label') if row.get(key) is not None}
  if row.get('image'):
    example['image'] = str(folder / row['image'])
    if not (folder / row['image']).is_file():
      raise ValueError(f'there is no file {row["image"]} (looked in {folder})')
  if (target := row.get('target', row.get('targets'))) is not None:
    example['targets'] = tuple(target if isinstance(target, list) else [target])
    if not all(isinstance(text, str) and text.strip() for text in example['targets'] or ['']):
      raise ValueError("'target' must be a text, or a list of texts, none of them empty")
  for field in require:
    if field not in example:
      raise ValueError(f"no {'target' if field == 'targets' else field!r}")
  return example


def _pictures(source) -> dict:
  return {row['id']: pathlib.Path(row['image']) for row in source.rows if 'image' in row}


def fingerprint(source: ManifestSource) -> str:
  """Changes with the manifest and with the size or time of any picture."""
  digest = hashlib.sha256(source.path.read_bytes())
  for path in _pictures(source).values():
    stat = path.stat()
    digest.update(f'{path}|{stat.st_size}|{stat.st_mtime_ns}\n'.encode())
  return digest.hexdigest()[:16]


def broken_pictures(source: ManifestSource, cache_dir) -> dict:
  """Id -> reason of the pictures that can't be decoded. Remembered in `cache_dir` until the manifest or a
  file changes.
  """
  paths = _pictures(source)
  cache = pathlib.Path(cache_dir) / f'checked-{fingerprint(source)}.json'
  if cache.exists():
    return read_json(cache)
  broken = {}
  for name, path in progress(paths.items(), f'checking the pictures of {source.path.name}'):
    try:
      decode_picture(path.read_bytes())
    except (ValueError, OSError) as error:
      broken[name] = f'{path}: {error}'
  write_json(cache, broken)
  return broken


def check_pictures(source: ManifestSource, cache_dir, skip_broken=False):
  """`source`, or with skip_broken the part of it that can be decoded; otherwise a broken picture raises
  UserError.
  """
  broken = broken_pictures(source, cache_dir)
  if not broken:
    return source
  listed = '\n'.join(f'  {name}: {reason}' for name, reason in list(broken.items())[:5])
  if not skip_broken or len(broken) == len(source):
    raise UserError(f'{source.path}: {len(broken)} of {len(source)} pictures are broken:\n{listed}\n'
                    'Replace them, or leave them out with --skip_broken.')
  print(f'{source.path}: left out {len(broken)} of {len(source)}, the picture is broken:\n{listed}',
        file=sys.stderr)
  return Subset(source, [i for i, row in enumerate(source.rows) if row['id'] not in broken])
