"""Frozen networks: grids of pictures before the train step, or of a whole split on disk.

Axes: N examples, V variants (as it is; mirrored), B batch, S places of the grid, C channels.
"""

import hashlib
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from mmlm.data.batching import stack
from mmlm.data.transforms.image import blank_picture
from mmlm.data.transforms.ops import apply_ops, parse_ops
from mmlm.models.apply import apply
from mmlm.models.encoders.encoder import Encoder
from mmlm.parallel.strategies import Strategy
from mmlm.pretrained import family_of
from mmlm.utils import run_dir as runs
from mmlm.utils.progress import progress

BATCH_SIZE = 64  # pictures of a batch when a split is computed


class FrozenBackbone:
  """The backbone of an encoder with its pretrained weights."""

  def __init__(self, encoder: type[Encoder], parallel: Strategy):
    network = encoder.backbone
    if network is None:
      raise ValueError(f'{encoder.__name__} has no backbone that could be frozen.')
    self.name = encoder.family
    self._params = parallel.replicate(family_of(encoder).load_params(''))

    def grid_of(params: dict, batch: dict) -> jax.Array:
      grid = apply(network(), params, batch['image'])
      return grid.reshape(grid.shape[0], -1, grid.shape[-1]).astype('float16')

    self._apply = parallel.per_example(grid_of)

  def grid(self, images: np.ndarray) -> jax.Array:
    """Maps pictures [B, H, W, 3] to grids [B, S, C] in float16."""
    return self._apply(self._params, {'image': images})

  def batch(self, batch: dict) -> dict:
    """Returns a batch with grids in the place of pictures."""
    return batch | {'image': self.grid(batch['image'])}

  def cached(
    self,
    source: Any,
    fingerprint: str,
    op_names: Sequence[str],
    mirrored: bool,
    folder: str | pathlib.Path,
  ) -> 'CachedGrids':
    """Returns the grids of all examples of `source`, from `folder` or computed into it.

    Args:
      fingerprint: differs between sources (data set, version, split).
      op_names: the ops of evaluation, which make the pictures that the network reads.
      mirrored: also keep the grid of the mirrored picture.
    """
    content = repr((fingerprint, self.name, op_names, mirrored, len(source)))
    key = hashlib.sha256(content.encode()).hexdigest()[:12]
    path = pathlib.Path(folder) / 'features' / f'{self.name}-{key}.npy'
    if not path.exists():
      self._compute(source, fingerprint, parse_ops(op_names), 1 + mirrored, path)
    return CachedGrids(source, path)

  def _compute(
    self, source: Any, fingerprint: str, ops: list, variants: int, path: pathlib.Path
  ) -> None:
    """Writes the grids [N, V, S, C] of all examples; the file is written whole or not at all."""
    title = f'{self.name} grids of {fingerprint}, batches of {BATCH_SIZE} pictures'
    starts = range(0, len(source), BATCH_SIZE)
    try:
      with runs.atomic_file(path) as file:
        for start in progress(starts, title):
          numbers = range(start, min(start + BATCH_SIZE, len(source)))
          grids = self._grids_of([source[i] for i in numbers], ops, variants)  # [B, V, S, C]
          if start == 0:
            shape = (len(source), *grids.shape[1:])
            header = {'descr': '<f2', 'fortran_order': False, 'shape': shape}
            np.lib.format.write_array_header_1_0(file, header)
          file.write(grids[: len(numbers)].tobytes())
    except OSError as error:
      error.filename = error.filename or path  # for the message that the disk is full
      raise

  def _grids_of(self, examples: list[dict], ops: list, variants: int) -> np.ndarray:
    """Returns [B, V, S, C]; NaN, which no network computes, where an example has no picture."""
    rng = np.random.default_rng(0)

    def blank() -> np.ndarray:
      return apply_ops(ops, {'image': blank_picture()}, rng)['image']

    pictures = [apply_ops(ops, example, rng).get('image') for example in examples]
    images, present = stack(pictures, BATCH_SIZE, blank)
    views = (images, images[:, :, ::-1])
    grids = np.stack([self.grid(view) for view in views[:variants]], 1)
    grids[~present] = np.nan
    return grids


class CachedGrids:
  """A source whose pictures are replaced by all variants of their grids [V, S, C].

  `pick_variant` takes one of them. An example without a picture has no grid.
  """

  def __init__(self, source: Any, path: pathlib.Path):
    self.source = source
    self.path = path
    self._grids = np.load(path, mmap_mode='r')

  @property
  def blank(self) -> np.ndarray:
    """Returns [V, S, C] of the shape of every grid."""
    return np.zeros_like(self._grids[0])

  def __reduce__(self):
    return CachedGrids, (self.source, self.path)

  def __len__(self) -> int:
    return len(self.source)

  def __getitem__(self, i: int) -> dict:
    grids = self._grids[i]
    if np.isnan(grids.flat[0]):
      return {'id': ''}
    return {'id': '', 'image': grids}


def pick_variant(train: bool) -> Callable[[dict, np.random.Generator], dict]:
  """Returns the op that takes a variant of a cached grid: any in training, else the first."""

  def op(example: dict, rng: np.random.Generator) -> dict:
    if 'image' not in example:
      return example
    grids = example['image']
    variant = rng.integers(len(grids)) if train else 0
    return {**example, 'image': grids[variant]}

  return op
