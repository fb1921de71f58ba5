"""A user's own files: JSON lines, paths relative to the manifest.

{"id": "a", "image": "photos/a.jpg", "target": "a dog runs"}          target: a text or a list of texts
{"id": "b", "image": "photos/b.jpg", "text": "optional", "label": 3}   label: a number, or the name of a class
{"id": "c", "audio": "features/c.npy", "video": "features/c2.npy"}     features: one array [C] or [S, C] in each file
{"id": "d", "audio": "sounds/d.wav", "speaker": "optional"}            a sound, for the ops log_mel or fbank
{"id": "e", "audio": "e.wav", "target": "il dort", "transcript": "he sleeps"}   what is said, where the target is its translation
"""

import copy
import hashlib
import json
import os
import pathlib
import sys

from mmlm.data.transforms.audio import decode_audio
from mmlm.data.transforms.features import is_features, read_features
from mmlm.data.transforms.image import decode_picture
from mmlm.utils.errors import UserError
from mmlm.utils.progress import progress
from mmlm.utils.run_dir import read_json, write_json

# The kinds of the fields of a line; what is null, empty or not there is absent.
KINDS = {
  'id': (str, int),
  'image': str,
  'audio': str,
  'video': str,
  'text': str,
  'label': (int, float, str),
  'target': (str, list),
  'speaker': str,
  'transcript': str,
}
FILES = ('image', 'audio', 'video')


class ManifestSource:
  """The examples of a manifest; every line is checked first, bytes are read when asked for.

  `require`: fields that each line must have ('image', 'text', 'targets', 'label'). Raises UserError with the
  first five errors: bad JSON, a field missing or of the wrong kind, a file that is not there, an id twice, no
  line at all.
  """

  def __init__(self, path, require=('image', 'targets')):
    self.path = pathlib.Path(path)
    try:
      lines = self.path.read_text(encoding='utf-8').split('\n')
    except (OSError, UnicodeDecodeError) as error:
      raise UserError(
        f'{path}: {getattr(error, "strerror", "not UTF-8")}. A manifest looks like this:\n{__doc__}'
      ) from None
    self.rows = []
    errors = []
    seen = {}
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
      raise UserError(
        '\n'.join(errors[:5] + [f'... {len(errors)} errors in all'] * (len(errors) > 5))
      )
    if not self.rows:
      raise UserError(f'{path}: no example in it.')

  def __len__(self):
    return len(self.rows)

  @property
  def identity(self) -> str:
    return f'{self.path.absolute()} {fingerprint(self)}'

  def __getitem__(self, i) -> dict:
    row = self.rows[i]
    return row | {field: _read(field, row[field]) for field in FILES if field in row}


def _read(field: str, path: str):
  if is_features(path) and field != 'image':
    return read_features(path)
  return pathlib.Path(path).read_bytes()


def _example(line, folder, require) -> dict:
  """A line as an example whose image is still a path; ValueError says what is wrong."""
  try:
    row = json.loads(line)
  except json.JSONDecodeError as error:
    raise ValueError(f'bad JSON at column {error.colno} ({error.msg})') from None
  if not isinstance(row, dict):
    raise ValueError('not a JSON object')
  row['target'] = row.get('target', row.get('targets'))
  row = {key: row[key] for key in KINDS if row.get(key) not in (None, '')}
  for key in ('id', *('target' if field == 'targets' else field for field in require)):
    if key not in row:
      raise ValueError(f'no {key!r}')
  for key, value in row.items():
    if not isinstance(value, KINDS[key]):
      raise ValueError(
        f'{key!r} must be {"a number or a text" if key == "label" else "a text"}, not {value!r}'
      )
  example = {
    key: str(value) if key == 'id' else value for key, value in row.items() if key != 'target'
  }
  for field in FILES:
    if field in row:
      example[field] = str(folder / row[field])
      if not os.path.isfile(example[field]):
        raise ValueError(f'there is no file {row[field]} (looked in {folder})')
      if field == 'video' and not is_features(row[field]):
        raise ValueError(f"'video' must be features in a file .npy, not {row[field]!r}")
  if 'target' in row:
    example['targets'] = (
      (row['target'],) if isinstance(row['target'], str) else tuple(row['target'])
    )
    if not example['targets'] or not all(
      isinstance(text, str) and text.strip() for text in example['targets']
    ):
      raise ValueError("'target' must be a text, or a list of texts, none of them empty")
  return example


def fingerprint(source: ManifestSource) -> str:
  """Changes with the manifest and with the size or time of any of its files."""
  digest = hashlib.sha256(source.path.read_bytes())
  for path in (row[field] for row in source.rows for field in FILES if field in row):
    stat = os.stat(path)
    digest.update(f'{path}|{stat.st_size}|{stat.st_mtime_ns}\n'.encode())
  return digest.hexdigest()[:16]


# {field: what its files are called, what reads one and fails where it is broken}
CHECKS = {
  'image': ('pictures', lambda path: decode_picture(pathlib.Path(path).read_bytes())),
  'audio': (
    'sounds',
    lambda path: (
      read_features(path) if is_features(path) else decode_audio(pathlib.Path(path).read_bytes())
    ),
  ),
}


def check_files(source: ManifestSource, cache_dir, skip_broken=False, fields=tuple(CHECKS)):
  """`source`, or with skip_broken the part of it that can be decoded; otherwise a broken picture or sound raises UserError.

  The verdict is remembered in `cache_dir` until the manifest or a file changes.
  """
  checks = {
    field: CHECKS[field]
    for field in fields
    if field in CHECKS and any(field in row for row in source.rows)
  }
  if not checks:
    return source
  what = ' and '.join(name for name, _ in checks.values())
  cache = pathlib.Path(cache_dir) / f'checked-{fingerprint(source)}-{"-".join(checks)}.json'
  if not cache.exists():
    broken = {}
    for row in progress(source.rows, f'checking the {what} of {source.path.name}'):
      try:
        for field in (field for field in checks if field in row):
          checks[field][1](row[field])
      except (UserError, OSError) as error:
        broken[row['id']] = f'{row[field]}: {str(error).removeprefix(f"{row[field]}: ")}'
    write_json(cache, broken)
  if not (broken := read_json(cache)):
    return source
  listed = ''.join(f'\n  {name}: {reason}' for name, reason in list(broken.items())[:5])
  listed = f'{source.path}: {len(broken)} of {len(source)} {what} are broken:{listed}'
  if not skip_broken or len(broken) == len(source):
    raise UserError(f'{listed}\nReplace them, or leave them out with --skip_broken.')
  print(f'{listed}\nThey are left out.', file=sys.stderr)
  whole = copy.copy(source)
  whole.rows = [row for row in source.rows if row['id'] not in broken]
  return whole
