"""Sources: `len(source)`, `source[i] -> dict`; random access, picklable. An example is a dict:

    {'id': str, 'image': bytes (encoded), 'text': str, 'targets': tuple[str, ...], 'label': int | float}; what
    is absent is not there.
"""

import bisect
import itertools
import pathlib

import numpy as np
import tensorflow_datasets as tfds

from mmlm.errors import UserError

F = tfds.features


class TfdsSource:
  """A split of any TFDS folder prepared as array_record; `split` in TFDS's syntax ('train', 'train[:50%]').

  `fields` maps our names to paths of features, e.g. {'id': 'id', 'image': 'image', 'targets':
  'captions/text'}. Pictures stay encoded; without an 'id' it is '<split>/<i>'. Raises UserError for a folder,
  split or field that is not there, or an empty split.
  """

  def __init__(self, folder, split: str, fields: dict):
    self.folder, self.split, self.fields = str(folder), split, dict(fields)
    builder = _builder(folder)
    leaves = _leaves(builder.info.features)
    for path in self.fields.values():
      if path not in leaves:
        raise UserError(f'{folder}: no field {path!r}; there are: {", ".join(sorted(leaves))}.')
    self._leaves = {name: leaves[path] for name, path in self.fields.items()}
    splits = ', '.join(f'{name} ({info.num_examples})' for name, info in builder.info.splits.items())
    try:
      self._data = builder.as_data_source(split, decoders=_undecoded(builder.info.features))
    except NotImplementedError:
      raise UserError(f"{folder}: prepared as {builder.info.file_format.value}, which can't be read at "
                      "random: prepare it again with file_format='array_record'.") from None
    except (ValueError, KeyError, AssertionError) as error:
      raise UserError(f'{folder}: no split {split!r} ({error}); there are: {splits}.') from None
    if not len(self._data):
      raise UserError(f'{folder}: the split {split!r} is empty; there are: {splits}.')
    self[0]  # a field of the wrong kind is found here, not by a worker

  def __len__(self):
    return len(self._data)

  def __getitem__(self, i) -> dict:
    row = self._data[int(i)]
    example = {'id': f'{self.split}/{i}'}
    for name, path in self.fields.items():
      value = _read(self._leaves[name], name, _follow(row, path.split('/')))
      if name == 'targets':
        value = (value,) if isinstance(value, str) else tuple(value)
        if not value or not all(isinstance(text, str) for text in value):
          raise UserError(f"{self.folder}: {path!r} of example {example['id']} is no text, or is empty.")
      example[name] = str(value) if name == 'id' else value
    return example


def _builder(folder):
  if not pathlib.Path(folder, 'dataset_info.json').is_file():
    raise UserError(f'{folder}: not a prepared data set (there is no dataset_info.json).')
  try:
    return tfds.builder_from_directory(str(folder))
  except ModuleNotFoundError as error:
    raise UserError(f"{folder}: a feature of it can't be read without {error.name} (Audio, Video).") from None


def _leaves(feature, prefix='') -> dict:
  """Path to feature of all leaves; a Sequence counts as what it holds."""
  inner = feature.feature if isinstance(feature, F.Sequence) else feature
  if not isinstance(inner, F.FeaturesDict):
    return {prefix: inner}
  leaves = {}
  for key in inner:
    leaves |= _leaves(inner[key], f'{prefix}/{key}'.lstrip('/'))
  return leaves


def _read(leaf, name, value):
  """A value of the feature as ours: texts are str, numbers Python's, a class that is a target its name."""
  if isinstance(value, (list, tuple, np.ndarray)) and isinstance(leaf, (F.Text, F.ClassLabel)):
    return [_read(leaf, name, item) for item in value]
  if isinstance(leaf, F.Text):
    return value.decode()
  if isinstance(leaf, F.ClassLabel) and name == 'targets':
    return leaf.int2str(int(value))
  return value.item() if isinstance(value, np.generic) else value


def _undecoded(features):
  """The same tree with SkipDecoding at every picture."""
  tree = {}
  for key, feature in features.items():
    if isinstance(feature, F.Image):
      tree[key] = tfds.decode.SkipDecoding()
    elif isinstance(feature, F.FeaturesDict) and (inner := _undecoded(feature)):
      tree[key] = inner
  return tree


def _follow(value, keys):
  for key in keys:
    value = [item[key] for item in value] if isinstance(value, list) else value[key]
  return value


class Subset:
  """The examples of `source` at `indices`, in that order."""

  def __init__(self, source, indices):
    self.source, self.indices = source, np.asarray(indices, np.int64)

  def __len__(self):
    return len(self.indices)

  def __getitem__(self, i) -> dict:
    return self.source[int(self.indices[i])]


class ConcatSource:
  """Several sources, one after the other."""

  def __init__(self, *sources):
    self.sources = sources
    self.ends = list(itertools.accumulate(map(len, sources)))

  def __len__(self):
    return self.ends[-1]

  def __getitem__(self, i) -> dict:
    which = bisect.bisect_right(self.ends, i)
    if not 0 <= i < len(self):
      raise IndexError(i)
    return self.sources[which][i - self.ends[which] + len(self.sources[which])]
