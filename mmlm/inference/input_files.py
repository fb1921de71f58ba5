"""Reading what a trained model is asked about: files, folders, sentences, manifests."""

import os
import pathlib

from mmlm.data.sources.manifest import ManifestSource
from mmlm.data.sources.parallel_text import read_lines
from mmlm.data.transforms.audio import SUFFIXES
from mmlm.data.transforms.features import is_features, read_features
from mmlm.utils.errors import UserError

PICTURES = {'.jpg', '.jpeg', '.png', '.webp', '.bmp', '.gif', '.tif', '.tiff'}
# {modality: (what one of its files is called, file name endings)}
FILES = {
  'image': ('picture', PICTURES),
  'audio': ('sound', SUFFIXES | {'.npy'}),
}


def read_inputs(path: str, modalities: tuple[str, ...]) -> list[dict]:
  """Returns the raw examples of --input for a model that reads `modalities`.

  `path` is a picture or sound, a folder of these, a sentence, a file of sentences, or a manifest,
  which needs no targets.

  Raises:
    UserError: there is no such file, it is empty, or the model reads other modalities.
  """
  if path.endswith('.jsonl'):
    examples = [*ManifestSource(path, require=modalities)]
  elif modalities == ('text',):
    examples = _read_sentences(path)
  else:
    examples = _read_files(pathlib.Path(path), modalities)
  for example in examples:
    _check_not_empty(path, example)
  return examples


def _check_not_empty(path: str, example: dict) -> None:
  """Raises UserError for a file of zero bytes, which elsewhere stands for a missing modality."""
  for modality, (kind, _) in FILES.items():
    value = example.get(modality)
    if isinstance(value, bytes) and not value:
      raise UserError(f'--input {path}: the {kind} of {example["id"]!r} has zero bytes.')


def _read_files(path: pathlib.Path, modalities: tuple[str, ...]) -> list[dict]:
  """Returns examples of a file or of the files below a folder, all of one modality."""
  if not path.exists():
    raise UserError(f'--input {path}: no such file or folder.')
  if modalities not in (('image',), ('audio',)):
    listed = ', '.join(modalities)
    raise UserError(
      f'--input {path}: this model reads {listed}: give a manifest (JSON lines) with these fields.'
    )
  (modality,) = modalities
  if not path.is_dir():
    return [{'id': path.name, modality: _read_file(path, modality)}]
  kind, endings = FILES[modality]
  files = []
  for file in path.rglob('*'):
    if file.suffix.lower() in endings:
      files.append(file)
  if not files:
    listed = ', '.join(sorted(endings))
    raise UserError(f'--input {path}: no {kind} ({listed}) in this folder.')
  examples = []
  for file in sorted(files):
    example = {
      'id': str(file.relative_to(path)),
      modality: _read_file(file, modality),
    }
    examples.append(example)
  return examples


def _read_file(path: pathlib.Path, modality: str):
  """Returns the bytes of a picture or sound, or an array [T, D] of features of a sound."""
  if modality == 'audio' and is_features(path):
    return read_features(path)
  return path.read_bytes()


def _read_sentences(path: str) -> list[dict]:
  """Returns examples of a file with a sentence a line, or of `path` itself as a sentence."""
  if not os.path.isfile(path):
    if not path.strip():
      raise UserError(f'--input {path!r}: an empty sentence.')
    if path.endswith(('.txt', '.tsv')):
      raise UserError(f'--input {path!r}: no such file.')
    return [{'id': 'sentence', 'text': path}]
  lines = read_lines(path)
  if not lines:
    raise UserError(f'--input {path}, line 1: empty.')
  examples = []
  for number, line in enumerate(lines, 1):
    if not line.strip():
      raise UserError(f'--input {path}, line {number}: empty.')
    example = {'id': f'line {number}', 'text': line}
    examples.append(example)
  return examples
