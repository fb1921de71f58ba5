"""Grids of a frozen network that are cached on disk."""

import io

import flax.linen as nn
import jax
import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from mmlm import config as configs
from mmlm.data.batching import Batch
from mmlm.data.datasets import preparation
from mmlm.experiment.experiment import Experiment
from mmlm.models.encoders.vision_encoders import EfficientNetGrid
from mmlm.parallel import Parallel
from mmlm.pretrained import FAMILIES, Family
from mmlm.pretrained.frozen_backbone import FrozenBackbone, pick_variant

OPS = '("decode","resize(16)","normalize")'
OPS_WITH_FLIP = '("decode","resize(16)","flip","normalize")'
BATCHES = 8


class OneConvolution(nn.Module):
  """A frozen network of one layer."""

  @nn.compact
  def __call__(self, x):
    return nn.Conv(4, (8, 8), strides=8, padding='VALID', use_bias=False)(x)


@pytest.fixture(autouse=True)
def small_network(monkeypatch):
  params = OneConvolution().init(jax.random.key(0), np.zeros((1, 16, 16, 3)))['params']
  monkeypatch.setattr(EfficientNetGrid, 'backbone', OneConvolution)
  monkeypatch.setitem(FAMILIES, 'efficientnet_lite0', Family(lambda name: params))


def picture():
  with io.BytesIO() as file:
    Image.new('RGB', (16, 16), (9, 40, 80)).save(file, 'PNG')
    return file.getvalue()


def load_grids(folder, cache, train):
  """Returns the grids of the first 64 examples, cached or computed from the loaded pictures."""
  settings = {
    'data.dir': str(folder),
    'data.train_ops': OPS_WITH_FLIP,
    'data.eval_ops': OPS,
    'parallel.strategy': 'jit',
    'model.encoders.image.cache': str(cache),
  }
  config = configs.load_config(f'{ROOT}/configs/captioning/manifest.py:smoke')
  data = Experiment(configs.override(config, settings), folder).data
  loader = data.loader('train[:70]', data.table('train[:70]', True), 8, train)
  images = []
  for number in range(BATCHES):
    batch = loader(number, Batch(np.arange(8) + 8 * number, 40, 8))
    images.append(np.asarray(batch['image'], np.float32))
  images = np.concatenate(images)
  if cache:
    return images
  return np.asarray(data.backbone.grid(images), np.float32)


def test_cached_grids_are_those_of_the_network(tmp_path):
  preparation.prepare('unicode_pictures/tiny', None, tmp_path)
  expected = load_grids(tmp_path, cache=False, train=False)
  cached = load_grids(tmp_path, cache=True, train=False)
  in_training = load_grids(tmp_path, cache=True, train=True)
  assert expected.shape == (64, 4, 4)
  assert np.array_equal(cached, expected)
  # About half of the pictures are mirrored in training.
  unchanged = (in_training == expected).all((1, 2))
  assert 16 < unchanged.sum() < 48
  (path,) = (tmp_path / 'features').iterdir()
  mirrored = np.load(path)[:64, 1].astype(np.float32)
  assert np.array_equal(in_training[~unchanged], mirrored[~unchanged])
  assert not np.array_equal(mirrored, expected)


def test_an_example_without_a_picture_has_no_grid(tmp_path):
  source = [{'id': 'a', 'image': picture()}, {'id': 'b'}, {'id': 'c', 'image': b''}]
  backbone = FrozenBackbone(EfficientNetGrid, Parallel('jit'))
  cached = backbone.cached(source, 'x', ('decode', 'normalize'), True, tmp_path)
  pick = pick_variant(train=True)
  rng = np.random.default_rng(0)
  assert ['image' in pick(cached[i], rng) for i in range(3)] == [True, False, False]
