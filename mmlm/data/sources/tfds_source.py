"""A split of a prepared data set, and a source whose texts are replaced."""

import pathlib
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from mmlm.data.sources.source import Source
from mmlm.utils.errors import UserError

F = tfds.features


class TfdsSource:
  """A split of any TFDS folder prepared as array_record; pictures stay encoded.

  Args:
    folder: with a dataset_info.json.
    split: in TFDS's syntax ('train', 'train[:50%]').
    fields: {our name: path of a feature}, as {'image': 'image', 'targets': 'captions/text'};
      without an 'id' it is '<split>/<i>'.

  Raises:
    UserError: a missing folder, split or field, or an empty split.
  """

  def __init__(
    self,
    folder: str | pathlib.Path,
    split: str,
    fields: dict[str, str],
  ):
    self.folder = str(folder)
    self.split = split
    self.fields = dict(fields)
    if not pathlib.Path(folder, 'dataset_info.json').is_file():
      raise UserError(f'{folder}: not a prepared data set (there is no dataset_info.json).')
    builder = tfds.builder_from_directory(str(folder))
    self._leaves = _leaves(builder.info.features)
    if unknown := [path for path in self.fields.values() if path not in self._leaves]:
      known = ', '.join(sorted(self._leaves))
      raise UserError(f'{folder}: no field {unknown[0]!r}; there are: {known}.')
    self._data = self._open(builder)
    self[0]  # a field of the wrong kind is an error now, not in a loader process

  def _open(self, builder: Any) -> Any:
    try:
      data = builder.as_data_source(self.split, decoders=_undecoded(builder.info.features))
      if not len(data):
        raise ValueError('it is empty')
    except NotImplementedError:
      file_format = builder.info.file_format.value
      raise UserError(
        f'{self.folder}: prepared as {file_format}, prepare it again as array_record.'
      ) from None
    except (ValueError, KeyError, AssertionError) as error:
      counts = [f'{name} ({info.num_examples})' for name, info in builder.info.splits.items()]
      raise UserError(
        f'{self.folder}: no split {self.split!r} ({error}); there are: {", ".join(counts)}.'
      ) from None
    return data

  def __len__(self) -> int:
    return len(self._data)

  @property
  def identity(self) -> str:
    """Changes when the set is prepared again, or something else of it is read."""
    folder = pathlib.Path(self.folder)
    stat = (folder / 'dataset_info.json').stat()
    fields = sorted(self.fields.items())
    return f'{folder.absolute()} {self.split} {fields} {stat.st_size} {stat.st_mtime_ns}'

  def __getitem__(self, i: int) -> dict:
    features = self._data[int(i)]
    example: dict[str, Any] = {'id': f'{self.split}/{i}'}
    for name, path in self.fields.items():
      value = _read(features, *self._leaves[path], name in ('targets', 'label'))
      if isinstance(value, np.ndarray) and value.shape[:1] == (0,):
        continue  # an empty array stands for a field that the example lacks
      if name == 'targets':
        value = self._targets(value, path, example['id'])
      example[name] = str(value) if name == 'id' else value
    return example

  def _targets(
    self,
    value: Any,
    path: str,
    example: str,
  ) -> tuple[str, ...]:
    """Returns the texts of a field, one or more, none of them empty."""
    targets = (value,) if isinstance(value, str) else tuple(value)
    if not targets or not all(isinstance(text, str) and text.strip() for text in targets):
      raise UserError(f'{self.folder}: {path!r} of example {example} is no text, or is empty.')
    return targets


class WithTexts:
  """A source whose texts are replaced.

  Args:
    texts: {id of an example: its text}.
    path: the file that they were read from, for the message about an example without a text.
  """

  def __init__(
    self,
    source: Source,
    texts: dict[str, str],
    path: str,
  ):
    self.source = source
    self.texts = texts
    self.path = path

  def __len__(self) -> int:
    return len(self.source)

  @property
  def identity(self) -> str:
    """That of the source, whose pictures, sounds and features are unchanged."""
    return self.source.identity

  def __getitem__(self, i: int) -> dict:
    example = self.source[i]
    if example['id'] not in self.texts:
      raise UserError(
        f'{self.path}: no text for the example {example["id"]!r}. '
        'Was it predicted from the same split?'
      )
    return example | {'text': self.texts[example['id']]}


def _leaves(feature: Any, keys: tuple[str, ...] = ()) -> dict[str, tuple[tuple[str, ...], Any]]:
  """Returns {path: (keys that lead there, feature)}; a Sequence counts as what it holds."""
  if isinstance(feature, F.Sequence):
    feature = feature.feature
  if not isinstance(feature, F.FeaturesDict):
    return {'/'.join(keys): (keys, feature)}
  leaves = {}
  for key in feature:
    leaves |= _leaves(feature[key], (*keys, key))
  return leaves


def _read(
  value: Any,
  keys: tuple[str, ...],
  leaf: Any,
  named: bool,
) -> Any:
  """Returns the value below the keys as Python's own; a list for a Sequence.

  Args:
    named: classes as names; otherwise as numbers.
  """
  if _is_sequence(value) and (keys or isinstance(leaf, F.Text | F.ClassLabel)):
    return [_read(item, keys, leaf, named) for item in value]
  if keys:
    return _read(value[keys[0]], keys[1:], leaf, named)
  if isinstance(leaf, F.Text):
    return value.decode()
  if isinstance(leaf, F.ClassLabel) and named:
    return leaf.int2str(int(value))
  if isinstance(value, np.generic):
    return value.item()
  return value


def _is_sequence(value: Any) -> bool:
  return isinstance(value, list | tuple | np.ndarray)


def _undecoded(features: Any) -> dict:
  """Returns the tree of features with SkipDecoding at every picture."""
  decoders = {}
  for key, feature in features.items():
    if isinstance(feature, F.Image):
      decoders[key] = tfds.decode.SkipDecoding()
    elif isinstance(feature, F.FeaturesDict):
      decoders[key] = _undecoded(feature)
  return decoders
