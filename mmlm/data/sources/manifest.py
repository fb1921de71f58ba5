"""A user's own files: JSON lines, paths relative to the manifest.

{"id": "a", "image": "photos/a.jpg", "target": "a dog runs"}
    target: a text or a list of texts
{"id": "b", "image": "photos/b.jpg", "text": "optional", "label": 3}
    label: a number, or the name of a class
{"id": "c", "audio": "features/c.npy", "video": "features/c2.npy"}
    features: one array [C] or [S, C] in each file
{"id": "d", "audio": "sounds/d.wav", "speaker": "optional"}
    a sound, for the ops log_mel or fbank
{"id": "e", "audio": "e.wav", "target": "il dort", "transcript": "he sleeps"}
    transcript: the words of the sound, if the target is their translation
"""

import hashlib
import json
import os
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from mmlm.data.sources.source import SplitRequest
from mmlm.data.transforms.audio import decode_audio
from mmlm.data.transforms.features import is_features, read_features
from mmlm.data.transforms.image import decode_picture
from mmlm.utils.errors import UserError
from mmlm.utils.progress import progress
from mmlm.utils.run_dir import read_json, write_json

# The types of the fields of a line; a field that is null or empty is absent.
TYPES = {
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
ERRORS_SHOWN = 5


class ManifestSource:
  """The examples of a manifest; every line is checked first, files are read when needed.

  Args:
    path: of the manifest.
    require: fields that each line must have ('image', 'text', 'targets', 'label').
    exclude: ids of examples that are left out.

  Raises:
    UserError: the first five errors: bad JSON, a field that is missing or of the wrong type, a
      missing file, an id twice, no line at all.
  """

  def __init__(
    self,
    path: str | pathlib.Path,
    require: Sequence[str] = ('image', 'targets'),
    exclude: Sequence[str] = (),
  ):
    self.path = pathlib.Path(path)
    self.require = tuple(require)
    examples = _read_manifest(self.path, self.require)
    excluded = set(exclude)
    self.examples = [example for example in examples if example['id'] not in excluded]

  def __len__(self) -> int:
    return len(self.examples)

  @property
  def identity(self) -> str:
    """Changes with the manifest and its files."""
    return f'{self.path.absolute()} {fingerprint(self)}'

  def __getitem__(self, i: int) -> dict:
    example = self.examples[i]
    contents = {field: _read(field, example[field]) for field in FILES if field in example}
    return example | contents


def open_manifest(request: SplitRequest) -> ManifestSource:
  """Opens a manifest whose files were checked."""
  source = ManifestSource(request.split, request.required)
  return check_files(source, request.cache_dir, request.skip_broken, request.modalities)


def fingerprint(source: ManifestSource) -> str:
  """Returns a hash of the manifest and of the sizes and times of its files."""
  digest = hashlib.sha256(source.path.read_bytes())
  for example in source.examples:
    for field in FILES:
      if field in example:
        stat = os.stat(example[field])
        digest.update(f'{example[field]}|{stat.st_size}|{stat.st_mtime_ns}\n'.encode())
  return digest.hexdigest()[:16]


def _read(field: str, path: str) -> Any:
  if is_features(path) and field != 'image':
    return read_features(path)
  return pathlib.Path(path).read_bytes()


# Lines


def _read_manifest(path: pathlib.Path, require: tuple[str, ...]) -> list[dict]:
  """Returns the examples of a manifest, their files as paths."""
  try:
    lines = path.read_text(encoding='utf-8').split('\n')
  except OSError as error:
    raise _unreadable(path, error.strerror) from None
  except UnicodeDecodeError:
    raise _unreadable(path, 'not UTF-8') from None
  examples = []
  errors = []
  first_lines: dict[str, int] = {}
  for number, line in enumerate(lines, 1):
    if not line.strip():
      continue
    try:
      example = _example(line, path.parent, require)
      first = first_lines.setdefault(example['id'], number)
      if first != number:
        raise ValueError(f'the id {example["id"]!r} stands already in line {first}')
      examples.append(example)
    except ValueError as error:
      errors.append(f'{path}, line {number}: {error}')
  if len(errors) > ERRORS_SHOWN:
    errors = [*errors[:ERRORS_SHOWN], f'... {len(errors)} errors in all']
  if errors:
    raise UserError('\n'.join(errors))
  if not examples:
    raise UserError(f'{path}: no example in it.')
  return examples


def _unreadable(path: pathlib.Path, reason: str | None) -> UserError:
  return UserError(f'{path}: {reason}. A manifest looks like this:\n{__doc__}')


def _example(
  line: str,
  folder: pathlib.Path,
  require: tuple[str, ...],
) -> dict:
  """Parses a line as an example whose files are still paths; a ValueError says what is wrong."""
  fields = _fields(line, require)
  example = {key: value for key, value in fields.items() if key != 'target'}
  example['id'] = str(example['id'])
  for field in FILES:
    if field in fields:
      example[field] = _existing_file(field, fields[field], folder)
  if 'target' in fields:
    example['targets'] = _targets(fields['target'])
  return example


def _fields(line: str, require: tuple[str, ...]) -> dict:
  """Returns the fields of a line, of the right types."""
  try:
    values = json.loads(line)
  except json.JSONDecodeError as error:
    raise ValueError(f'bad JSON at column {error.colno} ({error.msg})') from None
  if not isinstance(values, dict):
    raise ValueError('not a JSON object')
  values['target'] = values.get('target', values.get('targets'))
  fields = {key: values[key] for key in TYPES if values.get(key) not in (None, '')}
  for name in ('id', *require):
    key = 'target' if name == 'targets' else name
    if key not in fields:
      raise ValueError(f'no {key!r}')
  for key, value in fields.items():
    if not isinstance(value, TYPES[key]):
      expected = 'a number or a text' if key == 'label' else 'a text'
      raise ValueError(f'{key!r} must be {expected}, not {value!r}')
  return fields


def _existing_file(
  field: str,
  name: str,
  folder: pathlib.Path,
) -> str:
  path = str(folder / name)
  if not os.path.isfile(path):
    raise ValueError(f'there is no file {name} (looked in {folder})')
  if field == 'video' and not is_features(name):
    raise ValueError(f"'video' must be features in a file .npy, not {name!r}")
  return path


def _targets(target: str | list) -> tuple[str, ...]:
  targets = (target,) if isinstance(target, str) else tuple(target)
  valid = [isinstance(text, str) and bool(text.strip()) for text in targets]
  if not targets or not all(valid):
    raise ValueError("'target' must be a text, or a list of texts, none of them empty")
  return targets


# Files


class FileCheck(NamedTuple):
  """How the files of a field are checked."""

  files: str  # what they are called
  read: Callable[[str], Any]  # fails for a broken file


def _read_picture(path: str) -> Any:
  return decode_picture(pathlib.Path(path).read_bytes())


def _read_audio(path: str) -> Any:
  if is_features(path):
    return read_features(path)
  return decode_audio(pathlib.Path(path).read_bytes())


CHECKS = {'image': FileCheck('pictures', _read_picture), 'audio': FileCheck('sounds', _read_audio)}


def check_files(
  source: ManifestSource,
  cache_dir: str | pathlib.Path,
  skip_broken: bool = False,
  fields: Sequence[str] = tuple(CHECKS),
) -> ManifestSource:
  """Checks that the files of a manifest can be decoded.

  The result is cached in `cache_dir` until the manifest or a file changes.

  Args:
    skip_broken: leave out examples with broken files.
    fields: whose files are checked.

  Returns:
    The source, or the part of it that can be decoded.

  Raises:
    UserError: broken files, without `skip_broken`, or in every example.
  """
  checks = {}
  for field in fields:
    if field in CHECKS and any(field in example for example in source.examples):
      checks[field] = CHECKS[field]
  if not checks:
    return source
  kinds = ' and '.join(check.files for check in checks.values())
  cache = pathlib.Path(cache_dir) / f'checked-{fingerprint(source)}-{"-".join(checks)}.json'
  if not cache.exists():
    write_json(cache, _broken_examples(source, checks, kinds))
  broken = read_json(cache)
  if not broken:
    return source
  shown = [f'\n  {name}: {reason}' for name, reason in list(broken.items())[:ERRORS_SHOWN]]
  message = f'{source.path}: {len(broken)} of {len(source)} {kinds} are broken:{"".join(shown)}'
  if not skip_broken or len(broken) == len(source):
    raise UserError(f'{message}\nReplace them, or leave them out with --skip_broken.')
  print(f'{message}\nThey are left out.', file=sys.stderr)
  return ManifestSource(source.path, source.require, exclude=tuple(broken))


def _broken_examples(
  source: ManifestSource, checks: dict[str, FileCheck], kinds: str
) -> dict[str, str]:
  """Returns {id of an example: which file is broken, and why}."""
  broken = {}
  for example in progress(source.examples, f'checking the {kinds} of {source.path.name}'):
    for field, check in checks.items():
      if field not in example:
        continue
      path = example[field]
      try:
        check.read(path)
      except (UserError, OSError) as error:
        broken[example['id']] = f'{path}: {str(error).removeprefix(f"{path}: ")}'
        break
  return broken
