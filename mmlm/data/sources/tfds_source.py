"""Sources: `len(source)`, `source[i] -> dict`; random access, picklable. An example is a dict:

{'id': str, 'image': bytes (encoded), 'text': str, 'targets': tuple[str, ...], 'label': int | float}; what
is absent is not there.
"""

import pathlib

import numpy as np
import tensorflow_datasets as tfds

from mmlm.utils.errors import UserError

F = tfds.features


class TfdsSource:
  """A split of any TFDS folder prepared as array_record; `split` in TFDS's syntax ('train', 'train[:50%]').

  `fields` maps our names to paths of features, e.g. {'id': 'id', 'image': 'image', 'targets':
  'captions/text'}. Pictures stay encoded; without an 'id' it is '<split>/<i>'. Raises UserError for a folder,
  split or field that is not there, or an empty split.
  """

  def __init__(self, folder, split: str, fields: dict):
    self.folder = str(folder)
    self.split = split
    self.fields = dict(fields)
    if not pathlib.Path(folder, 'dataset_info.json').is_file():
      raise UserError(f'{folder}: not a prepared data set (there is no dataset_info.json).')
    builder = tfds.builder_from_directory(str(folder))
    self._leaves = _leaves(builder.info.features)
    if unknown := [path for path in self.fields.values() if path not in self._leaves]:
      raise UserError(
        f'{folder}: no field {unknown[0]!r}; there are: {", ".join(sorted(self._leaves))}.'
      )
    try:
      self._data = builder.as_data_source(split, decoders=_undecoded(builder.info.features))
      if not len(self._data):
        raise ValueError('it is empty')
    except NotImplementedError:
      raise UserError(
        f'{folder}: prepared as {builder.info.file_format.value}, prepare it again as array_record.'
      ) from None
    except (ValueError, KeyError, AssertionError) as error:
      splits = ', '.join(
        f'{name} ({info.num_examples})' for name, info in builder.info.splits.items()
      )
      raise UserError(f'{folder}: no split {split!r} ({error}); there are: {splits}.') from None
    self[0]  # a field of the wrong kind is found here, not by a worker

  def __len__(self):
    return len(self._data)

  @property
  def identity(self) -> str:
    """Changes when the set is prepared again, or something else of it is read."""
    stat = pathlib.Path(self.folder, 'dataset_info.json').stat()
    return f'{pathlib.Path(self.folder).absolute()} {self.split} {sorted(self.fields.items())} {stat.st_size} {stat.st_mtime_ns}'

  def __getitem__(self, i) -> dict:
    row = self._data[int(i)]
    example = {'id': f'{self.split}/{i}'}
    for name, path in self.fields.items():
      value = _read(row, *self._leaves[path], name in ('targets', 'label'))
      if isinstance(value, np.ndarray) and value.shape[:1] == (
        0,
      ):  # of a set, this says that an example lacks it
        continue
      if name == 'targets':
        if isinstance(value, str):
          value = (value,)
        else:
          value = tuple(value)
        if not value or not all(isinstance(text, str) and text.strip() for text in value):
          raise UserError(
            f'{self.folder}: {path!r} of example {example["id"]} is no text, or is empty.'
          )
      example[name] = str(value) if name == 'id' else value
    return example


class WithTexts:
  """A source whose examples have other texts, {id: text} from a file `path`; UserError for an example that it does not name."""

  def __init__(self, source, texts: dict[str, str], path: str):
    self.source = source
    self.texts = texts
    self.path = path

  def __len__(self):
    return len(self.source)

  def __getitem__(self, i) -> dict:
    example = self.source[i]
    if example['id'] not in self.texts:
      raise UserError(
        f'{self.path}: no text for the example {example["id"]!r}. Was it predicted from the same split?'
      )
    return example | {'text': self.texts[example['id']]}


def _leaves(feature, keys=()) -> dict:
  """Path to (keys that lead there, feature) of all leaves; a Sequence counts as what it holds."""
  if isinstance(feature, F.Sequence):
    feature = feature.feature
  else:
    feature = feature
  if not isinstance(feature, F.FeaturesDict):
    return {'/'.join(keys): (keys, feature)}
  result = {}
  for key in feature:
    for path, leaf in _leaves(feature[key], (*keys, key)).items():
      result[path] = leaf
  return result


def _read(value, keys, leaf, named: bool):
  """The value below the keys as ours, in a Sequence a list: texts are str, numbers Python's, classes their names if `named`."""
  if isinstance(value, (list, tuple, np.ndarray)) and (
    keys or isinstance(leaf, F.Text | F.ClassLabel)
  ):
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


def _undecoded(features):
  """The same tree with SkipDecoding at every picture."""

  def skip(feature):
    if isinstance(feature, F.Image):
      return tfds.decode.SkipDecoding()
    return _undecoded(feature)

  return {
    key: skip(feature)
    for key, feature in features.items()
    if isinstance(feature, F.Image | F.FeaturesDict)
  }
