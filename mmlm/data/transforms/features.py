"""Features that were computed elsewhere: a vector [C] or a sequence [S, C] an example, in .npy files or a prepared data set."""

import hashlib
import pathlib

import numpy as np

from mmlm.data.transforms.audio import Sound
from mmlm.data.transforms.ops import apply_ops, parse_ops
from mmlm.utils.errors import UserError
from mmlm.utils.progress import progress
from mmlm.utils.run_dir import read_json, write_json


def read_features(path) -> np.ndarray:
  """The array of a .npy file, float32; UserError when it is none."""
  try:
    array = np.load(path, allow_pickle=False)
  except (OSError, ValueError, EOFError) as error:
    raise UserError(f'{path}: no features in the format of numpy ({error}).') from None
  if not isinstance(array, np.ndarray) or array.dtype.kind not in 'fiu':
    raise UserError(f'{path}: expected one array of numbers (.npy).')
  return array.astype(np.float32)


def rows_of(source, widths: dict[str, int], ops: tuple, cache_dir) -> dict[str, np.ndarray]:
  """`count_rows` of a source, by the texts of the ops; remembered in `cache_dir` as long as the files of the source stay as they are."""
  if not widths:
    return {}
  if not (identity := getattr(source, 'identity', '')):
    return count_rows(source, widths, parse_ops(ops))
  digest = hashlib.sha256(
    repr((identity, sorted(widths.items()), tuple(ops))).encode()
  ).hexdigest()[:16]
  cache = pathlib.Path(cache_dir) / f'rows-{digest}.json'
  if not cache.exists():
    write_json(
      cache,
      {
        modality: counts.tolist()
        for modality, counts in count_rows(source, widths, parse_ops(ops)).items()
      },
    )
  return {modality: np.array(counts, int) for modality, counts in read_json(cache).items()}


def lengthened(counts: dict[str, np.ndarray], factor: float) -> dict[str, np.ndarray]:
  """The most rows that examples have after ops that lengthen them by a factor at most (`audio_ops.longest`); 0 stays.

  Rows are of samples, rounded: a sound of almost one row more may be behind each count.
  """

  def longer(rows):
    if factor == 1:
      return rows
    return np.where(rows > 0, np.ceil((rows + 1) * factor), 0).astype(int)

  return {
    modality: longer(rows) if modality == 'audio' else rows for modality, rows in counts.items()
  }


def shortened(counts: dict[str, np.ndarray], factor: float) -> dict[str, np.ndarray]:
  """The fewest rows after ops that shorten by a factor at most (`audio_ops.shortest`)."""

  def shorter(rows):
    if factor == 1:
      return rows
    return np.minimum(rows, np.maximum(1, np.floor(rows * factor) - 1)).astype(int)

  return {
    modality: shorter(rows) if modality == 'audio' else rows for modality, rows in counts.items()
  }


def count_rows(source, widths: dict[str, int], ops: list = ()) -> dict[str, np.ndarray]:
  """{modality: [N] rows of each example, 0 where it has none}; a vector counts as one row.

  Args:
    widths: {modality: values of each row that its encoder reads}.
    ops: what makes features of what the source holds.

  Raises:
    UserError: naming the first example whose features have another width or rank, no row, or a value that is not finite.
  """
  counts = {modality: np.zeros(len(source), int) for modality in widths}
  for i in progress(range(len(source)), 'counting rows of features') if widths else ():
    example = source[i]
    example = apply_ops(
      ops,
      {key: example[key] for key in ('id', *widths) if key in example},
      np.random.default_rng(0),
    )
    for modality, width in widths.items():
      array = example.get(modality)
      if array is None:
        continue
      where = f'the {modality} features of {example["id"]!r}'
      if isinstance(array, bytes | Sound):
        raise UserError(
          f'{where} are a sound: put log_mel or fbank into data.train_ops and eval_ops, or give a file .npy.'
        )
      if not isinstance(array, np.ndarray) or array.ndim not in (1, 2):
        raise UserError(
          f'{where} have the shape {np.shape(array)}: expected a vector [{width}] or rows [S, {width}].'
        )
      if array.shape[-1] != width:
        raise UserError(
          f'{where} have {array.shape[-1]} values, model.encoders.{modality}.width={width}.'
        )
      if not array.shape[0]:
        raise UserError(f'{where} have no row.')
      counts[modality][i] = 1 if array.ndim == 1 else len(array)
      if not np.isfinite(array).all():
        raise UserError(
          f'{where} have a value that is not finite, at {tuple(map(int, np.argwhere(~np.isfinite(array))[0]))}.'
        )
  return counts


def is_features(path) -> bool:
  return pathlib.Path(path).suffix == '.npy'
