"""Frozen networks: pictures to grids before the train step, and the grids of a whole split on disk, computed once.

Axes: N examples, V variants (as it is; mirrored), B batch, S places of the grid, C channels.
"""

import hashlib
import pathlib

import jax
import numpy as np

from mmlm.data.batching import stack
from mmlm.data.transforms.image import blank_picture
from mmlm.data.transforms.ops import apply_ops, parse_ops
from mmlm.models.encoders.convnet import EfficientNetLite0
from mmlm.pretrained.efficientnet import load_efficientnet_lite0
from mmlm.utils import run_dir as runs
from mmlm.utils.progress import progress

BACKBONES = {'efficientnet_lite0': (EfficientNetLite0, load_efficientnet_lite0)}


class FrozenBackbone:
  """A network by name with its pretrained weights; `grid` maps pictures [B, H, W, 3] to [B, S, C] in float16."""

  def __init__(self, name: str, parallel):
    module, load = BACKBONES[name]
    self.name = name
    self._params = parallel.replicate(load())

    def apply(params, batch):
      grid = module().apply({'params': params}, batch['image'])
      return grid.reshape(grid.shape[0], -1, grid.shape[-1]).astype('float16')

    self._apply = parallel.per_example(apply)

  def grid(self, images: np.ndarray) -> jax.Array:
    return self._apply(self._params, {'image': images})

  def batch(self, batch: dict) -> dict:
    """A batch with grids in the place of pictures."""
    return batch | {'image': self.grid(batch['image'])}

  def cached(
    self, source, fingerprint: str, op_names: tuple, mirrored: bool, folder
  ) -> 'CachedGrids':
    """The grids of all examples of `source`: read from `folder`, or computed into it, whole or not at all.

    Args:
      fingerprint: tells this source from others (data set, version, split).
      op_names: the ops of evaluation, which make the picture that the network sees.
      mirrored: also keep the grid of the mirrored picture.
    """
    key = hashlib.sha256(
      repr((fingerprint, self.name, op_names, mirrored, len(source))).encode()
    ).hexdigest()[:12]
    path = pathlib.Path(folder) / 'features' / f'{self.name}-{key}.npy'
    if not path.exists():
      self._compute(source, fingerprint, parse_ops(op_names), 1 + mirrored, path)
    return CachedGrids(source, path)

  def _compute(self, source, fingerprint, ops, variants, path, batch_size=64):
    rng = np.random.default_rng(0)
    starts = range(0, len(source), batch_size)

    def blank():
      return apply_ops(ops, {'image': blank_picture()}, rng)['image']

    try:
      with runs.atomic_file(path) as file:
        for start in progress(
          starts, f'{self.name} grids of {fingerprint}, batches of {batch_size} pictures'
        ):
          rows = range(start, min(start + batch_size, len(source)))
          images, present = stack(
            [apply_ops(ops, source[i], rng).get('image') for i in rows], batch_size, blank
          )
          grids = np.stack(
            [self.grid(view) for view in (images, images[:, :, ::-1])[:variants]], 1
          )  # [B, V, S, C]
          grids[~present] = np.nan  # what no network computes: `CachedGrids` knows it again
          if not start:
            shape = (len(source), *grids.shape[1:])
            np.lib.format.write_array_header_1_0(
              file, {'descr': '<f2', 'fortran_order': False, 'shape': shape}
            )
          file.write(grids[: len(rows)].tobytes())
    except OSError as error:
      error.filename = error.filename or path  # for main, which says that the disk is full
      raise


class CachedGrids:
  """A source whose pictures are replaced by all variants of their grids [V, S, C]; `pick_variant` takes one.

  An example without a picture has no grid.
  """

  def __init__(self, source, path):
    self.source = source
    self.path = path
    self._grids = np.load(path, mmap_mode='r')

  @property
  def blank(self) -> np.ndarray:
    """[V, S, C], for the shape."""
    return np.zeros_like(self._grids[0])

  def __reduce__(self):
    return CachedGrids, (self.source, self.path)

  def __len__(self):
    return len(self.source)

  def __getitem__(self, i) -> dict:
    grids = self._grids[i]
    if np.isnan(grids.flat[0]):
      return {'id': ''}
    return {'id': '', 'image': grids}


def pick_variant(train: bool):
  """The op that takes one variant of a cached grid: any in training, the first in evaluation."""

  def op(example, rng):
    if 'image' not in example:
      return example
    grids = example['image']
    return {**example, 'image': grids[rng.integers(len(grids)) if train else 0]}

  return op
