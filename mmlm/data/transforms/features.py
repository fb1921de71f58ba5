"""Precomputed features: a vector [C] or a sequence [S, C] an example.

S: feature frames; C: values of a frame; N: examples.
"""

import hashlib
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from mmlm.data.transforms.audio import Sound
from mmlm.data.transforms.ops import Op, apply_ops, parse_ops
from mmlm.utils.errors import UserError
from mmlm.utils.progress import progress
from mmlm.utils.run_dir import read_json, write_json

if TYPE_CHECKING:  # sources import this module
  from mmlm.data.sources.source import Source

Counts = dict[str, np.ndarray]  # {modality: [N] frames of each example, 0 where it has none}


def is_features(path: str | pathlib.Path) -> bool:
  """Returns whether a file holds features, by its name."""
  return pathlib.Path(path).suffix == '.npy'


def read_features(path: str | pathlib.Path | BinaryIO) -> np.ndarray:
  """Returns the array of a .npy file, float32.

  Raises:
    UserError: it holds no array of numbers.
  """
  try:
    array = np.load(path, allow_pickle=False)
  except (OSError, ValueError, EOFError) as error:
    raise UserError(f'{path}: no features in the format of numpy ({error}).') from None
  if not isinstance(array, np.ndarray) or array.dtype.kind not in 'fiu':
    raise UserError(f'{path}: expected one array of numbers (.npy).')
  return array.astype(np.float32)


def rows_of(
  source: 'Source', widths: dict[str, int], ops: Sequence[str], cache_dir: str | pathlib.Path
) -> Counts:
  """Returns `count_rows` of a source, cached in `cache_dir` until files of the source change.

  Args:
    ops: transforms as in a config.
  """
  if not widths:
    return {}
  if not source.identity:
    return count_rows(source, widths, parse_ops(ops))
  content = repr((source.identity, sorted(widths.items()), tuple(ops)))
  digest = hashlib.sha256(content.encode()).hexdigest()[:16]
  cache = pathlib.Path(cache_dir) / f'rows-{digest}.json'
  if not cache.exists():
    counts = count_rows(source, widths, parse_ops(ops))
    write_json(cache, {modality: frames.tolist() for modality, frames in counts.items()})
  return {modality: np.array(frames, int) for modality, frames in read_json(cache).items()}


def lengthened(counts: Counts, factor: float) -> Counts:
  """Returns the most frames after transforms that lengthen by `factor` at most; 0 stays 0.

  Frames are rounded from samples: each count may stand for a sound of almost one frame more.
  """
  if factor == 1 or 'audio' not in counts:
    return counts
  frames = counts['audio']
  longest = np.where(frames > 0, np.ceil((frames + 1) * factor), 0)
  return counts | {'audio': longest.astype(int)}


def shortened(counts: Counts, factor: float) -> Counts:
  """Returns the fewest frames after transforms that shorten to `factor` at least."""
  if factor == 1 or 'audio' not in counts:
    return counts
  frames = counts['audio']
  shortest = np.maximum(1, np.floor(frames * factor) - 1)
  return counts | {'audio': np.minimum(frames, shortest).astype(int)}


def count_rows(
  source: 'Sequence[dict] | Source', widths: dict[str, int], ops: Sequence[Op] = ()
) -> Counts:
  """Returns {modality: [N] frames of each example, 0 where it has none}; a vector is one frame.

  Args:
    widths: {modality: values of a frame that its encoder reads}.
    ops: transforms that compute features from what the source holds.

  Raises:
    UserError: the first example whose features have another width or rank, no frame, or a value
      that is not finite.
  """
  counts = {modality: np.zeros(len(source), int) for modality in widths}
  if not widths:
    return counts
  for i in progress(range(len(source)), 'counting rows of features'):
    example = source[i]
    read = {key: example[key] for key in ('id', *widths) if key in example}
    transformed = apply_ops(ops, read, np.random.default_rng(0))
    for modality, width in widths.items():
      features = transformed.get(modality)
      if features is not None:
        _check_features(features, modality, width, example['id'])
        counts[modality][i] = 1 if features.ndim == 1 else len(features)
  return counts


def _check_features(
  features: Any,
  modality: str,
  width: int,
  example: str,
) -> None:
  """Raises a UserError for what is not finite features of a width."""
  where = f'the {modality} features of {example!r}'
  if isinstance(features, bytes | Sound):
    raise UserError(
      f'{where} are a sound: put log_mel or fbank into data.train_ops and eval_ops, '
      'or give a file .npy.'
    )
  if not isinstance(features, np.ndarray) or features.ndim not in (1, 2):
    raise UserError(
      f'{where} have the shape {np.shape(features)}: '
      f'expected a vector [{width}] or rows [S, {width}].'
    )
  if features.shape[-1] != width:
    raise UserError(
      f'{where} have {features.shape[-1]} values, model.encoders.{modality}.width={width}.'
    )
  if not features.shape[0]:
    raise UserError(f'{where} have no row.')
  if not np.isfinite(features).all():
    position = tuple(map(int, np.argwhere(~np.isfinite(features))[0]))
    raise UserError(f'{where} have a value that is not finite, at {position}.')
