"""Reader of PyTorch's old checkpoint format (before 1.6, not zip); runs nothing from the file.

The file is five pickles (magic number, protocol, system facts, the object, list of storage keys),
then for each key, in order, the storage: an int64 count of elements and the raw elements.
Unpickling makes plain records only; arrays are cut from the storages afterwards.
"""

import collections
import math
import pathlib
import pickle
from typing import Any, BinaryIO

import numpy as np

from mmlm.utils.errors import UserError

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
DTYPES = {
  'DoubleStorage': '<f8',
  'FloatStorage': '<f4',
  'HalfStorage': '<f2',
  'LongStorage': '<i8',
  'IntStorage': '<i4',
  'ShortStorage': '<i2',
  'CharStorage': '<i1',
  'ByteStorage': '<u1',
  'BoolStorage': '?',
}
_Storage = collections.namedtuple('_Storage', 'key dtype count')
_Tensor = collections.namedtuple(
  '_Tensor', 'storage offset shape strides'
)  # offset and strides in elements


class _Unpickler(pickle.Unpickler):
  """Builds containers, numbers, strings and the records above; any other global is refused."""

  def find_class(self, module: str, name: str) -> Any:
    # Functions are made anew each time, so that no pickle can alter what the next one sees.
    known = {f'torch.{storage}': dtype for storage, dtype in DTYPES.items()} | {
      'collections.OrderedDict': collections.OrderedDict,
      'torch._utils._rebuild_tensor_v2': lambda *args: _Tensor(*args[:4]),
      'torch._utils._rebuild_parameter': lambda tensor, *_: tensor,
    }
    if f'{module}.{name}' not in known:
      raise UserError(
        f'it asks for {module}.{name}, which weights do not need: do not trust this file'
      )
    return known[f'{module}.{name}']

  def persistent_load(self, pid: Any) -> _Storage:
    kind, dtype, key, _, count, view = pid
    if kind != 'storage' or view is not None:
      raise ValueError(f'storage {key!r} is of an unknown kind')
    return _Storage(key, dtype, count)


def _read_storage(file: BinaryIO, storage: _Storage) -> np.ndarray:
  count = int.from_bytes(file.read(8), 'little', signed=True)
  values = np.fromfile(file, storage.dtype, storage.count)
  if not count == storage.count == len(values):
    raise ValueError(
      f'storage {storage.key} lacks some of its {storage.count} elements: cut or damaged'
    )
  return values


def _cut(tensor: _Tensor, storages: dict[str, np.ndarray]) -> np.ndarray:
  """Returns a copy: numpy refuses a view that leaves its buffer, and no such view is returned."""
  values = storages[tensor.storage.key]
  shape = tensor.shape
  if math.prod(shape) > len(values):  # numbers repeated by strides of 0
    raise ValueError(f'shape {shape} is more than its storage of {len(values)} elements')
  strides = []
  for elements in tensor.strides:
    strides.append(elements * values.itemsize)
  view = np.ndarray(
    shape,
    values.dtype,
    buffer=values,
    offset=tensor.offset * values.itemsize,
    strides=strides,
  )
  return view.copy()


def _read(file: BinaryIO) -> dict[str, np.ndarray]:
  if file.read(2) == b'PK':
    raise ValueError(
      'it is of the newer zip format: save it with `_use_new_zipfile_serialization=False`'
    )
  file.seek(0)

  def load():
    return _Unpickler(file).load()

  if load() != MAGIC or load() != PROTOCOL or not load()['little_endian']:
    raise ValueError('it does not start as a PyTorch file of a little-endian machine does')
  tensors = load()
  is_flat = isinstance(tensors, dict) and all(isinstance(t, _Tensor) for t in tensors.values())
  if not is_flat:
    raise ValueError('it holds something else than a flat state dict of tensors')
  kinds = {}
  for tensor in tensors.values():
    kinds[tensor.storage.key] = tensor.storage
  storages = {}
  for key in load():
    storages[key] = _read_storage(file, kinds[key])
  state = {}
  for name, tensor in tensors.items():
    state[name] = _cut(tensor, storages)
  return state


def read_state_dict(path: str | pathlib.Path) -> dict[str, np.ndarray]:
  """Reads {name: array} of a state dict saved by `torch.save` in the old format.

  Raises:
    UserError: no such file, a damaged or foreign one, or one that wants more than tensors.
  """
  try:
    with open(path, 'rb') as file:
      return _read(file)
  except Exception as e:  # a damaged pickle can raise nearly anything
    if isinstance(e, UserError | ValueError | OSError):
      damaged = ''
    else:
      damaged = f'it is cut or damaged: {type(e).__name__}: '
    raise UserError(f'cannot read weights from {path}: {damaged}{e}') from e
