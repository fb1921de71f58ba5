"""A small random Whisper for tests, in two layouts; its windows last one second."""

import json
import pathlib
import struct

import numpy as np
import tokenizers as hf
from safetensors.numpy import save_file
from tokenizers import decoders, models, pre_tokenizers

SPECIALS = [
  'endoftext',
  'startoftranscript',
  'en',
  'de',
  'yue',
  'translate',
  'transcribe',
  'startoflm',
  'startofprev',
  'nospeech',
  'notimestamps',
]
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
MERGES = [('Ġ', 'a'), ('t', 'h'), ('th', 'e')]
END = len(BYTES) + len(MERGES)
FIRST_TIME = END + len(SPECIALS)
WIDTH = 16
VOCABULARY = FIRST_TIME + 51
CONFIG = {
  'model_type': 'whisper',
  'vocab_size': VOCABULARY,
  'num_mel_bins': 80,
  'd_model': WIDTH,
  'encoder_layers': 2,
  'decoder_layers': 2,
  'encoder_attention_heads': 2,
  'decoder_attention_heads': 2,
  'encoder_ffn_dim': 24,
  'decoder_ffn_dim': 20,
  'max_source_positions': 50,
  'max_target_positions': 24,
  'activation_function': 'gelu',
  'scale_embedding': False,
  'pad_token_id': END,
  'bos_token_id': END,
  'eos_token_id': END,
  'decoder_start_token_id': END + 1,
  'suppress_tokens': None,
  'begin_suppress_tokens': None,
}
# Features of two windows [2, S, M], and tokens of two transcripts.
FRAMES = np.random.default_rng(0).normal(0, 1, (2, 100, 80)).astype(np.float32)
TOKENS = np.array([[END + 1, END + 2, END + 6, 70, 71, 72], [END + 1, 80, 81, 82, 83, 84]])


# Hugging Face


def state_of(seed: int = 8) -> dict[str, np.ndarray]:
  """Returns {Hugging Face's name without 'model.': random weights that float16 holds exactly}."""
  rng = np.random.default_rng(seed)
  state = {}
  for name, shape in weight_shapes().items():
    values = rng.normal(0, 0.4, shape)
    state[name] = values.astype(np.float16).astype(np.float32)
  return state


def weight_shapes() -> dict[str, tuple]:
  """Returns {name: shape} of all weights."""
  layers = {
    'encoder.conv1': (WIDTH, 80, 3),
    'encoder.conv2': (WIDTH, WIDTH, 3),
    'encoder.layer_norm': (WIDTH,),
    'decoder.layer_norm': (WIDTH,),
  }
  for layer in range(2):
    layers |= block_shapes(f'encoder.layers.{layer}', ['self_attn'], 24)
  for layer in range(2):
    layers |= block_shapes(f'decoder.layers.{layer}', ['self_attn', 'encoder_attn'], 20)
  shapes = {
    'encoder.embed_positions.weight': (50, WIDTH),
    'decoder.embed_positions.weight': (24, WIDTH),
    'decoder.embed_tokens.weight': (VOCABULARY, WIDTH),
  }
  for name, shape in layers.items():
    shapes[f'{name}.weight'] = shape
  for name, shape in layers.items():
    if not name.endswith('k_proj'):
      shapes[f'{name}.bias'] = shape[:1]
  return shapes


def block_shapes(block: str, attentions: list[str], hidden: int) -> dict[str, tuple]:
  """Returns {layer: shape of its weight} of a Transformer block."""
  shapes = {}
  for attention in attentions:
    for projection in ('q', 'k', 'v', 'out'):
      shapes[f'{block}.{attention}.{projection}_proj'] = (WIDTH, WIDTH)
    shapes[f'{block}.{attention}_layer_norm'] = (WIDTH,)
  shapes[f'{block}.fc1'] = (hidden, WIDTH)
  shapes[f'{block}.fc2'] = (WIDTH, hidden)
  shapes[f'{block}.final_layer_norm'] = (WIDTH,)
  return shapes


def make_tokenizer() -> hf.Tokenizer:
  pieces = BYTES + [''.join(pair) for pair in MERGES]
  vocabulary = {piece: i for i, piece in enumerate(pieces)}
  tokenizer = hf.Tokenizer(models.BPE(vocabulary, MERGES))
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  tokenizer.add_special_tokens([f'<|{name}|>' for name in SPECIALS])
  return tokenizer


def write_tokenizer(folder: pathlib.Path, separate: bool = False) -> None:
  """Writes tokenizer.json, or the three files of older folders."""
  tokenizer = make_tokenizer()
  if not separate:
    tokenizer.save(str(folder / 'tokenizer.json'))
    return
  saved = json.loads(tokenizer.to_str())
  added = {token['content']: token['id'] for token in saved['added_tokens']}
  merges = [f'{first} {second}\n' for first, second in MERGES]
  (folder / 'vocab.json').write_text(json.dumps(saved['model']['vocab']))
  (folder / 'merges.txt').write_text('#version: 0.2\n' + ''.join(merges))
  (folder / 'added_tokens.json').write_text(json.dumps(added))


def write_hugging_face(folder: pathlib.Path, state: dict | None = None, **changes) -> str:
  """Writes a folder of Hugging Face and returns its path; `changes` are keys of its config."""
  folder.mkdir(exist_ok=True)
  (folder / 'config.json').write_text(json.dumps(CONFIG | changes))
  write_tokenizer(folder)
  weights = {f'model.{name}': value for name, value in (state or state_of()).items()}
  save_file(weights, str(folder / 'model.safetensors'))
  return str(folder)


# CTranslate2

# {Hugging Face's layer: CTranslate2's}; layers that are joined to others are not in it.
LAYERS = {
  'self_attn_layer_norm': 'self_attention/layer_norm',
  'self_attn.q_proj': 'self_attention/linear_0',
  'self_attn.out_proj': 'self_attention/linear_1',
  'encoder_attn_layer_norm': 'attention/layer_norm',
  'encoder_attn.q_proj': 'attention/linear_0',
  'encoder_attn.k_proj': 'attention/linear_1',
  'encoder_attn.out_proj': 'attention/linear_2',
  'fc1': 'ffn/linear_0',
  'fc2': 'ffn/linear_1',
  'final_layer_norm': 'ffn/layer_norm',
}
# {the layer under whose name several projections are joined: these projections}
JOINED = {'self_attn.q_proj': 'qkv', 'encoder_attn.k_proj': 'kv'}
TABLES = {
  'embed_tokens.weight': 'embeddings/weight',
  'embed_positions.weight': 'position_encodings/encodings',
}
CONSTANTS = {
  'decoder/alignment_heads': np.array([[1, 0]], np.int16),
  'encoder/num_heads': np.array(2, np.int16),
  'decoder/num_heads': np.array(2, np.int16),
  'decoder/pre_norm': np.array(1, np.int8),
  'decoder/scale_embeddings': np.array(0, np.int8),
  'decoder/activation': np.array(3, np.int8),
}


def ctranslate2_variables(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Returns weights under CTranslate2's names: float16, projections of one input joined."""
  variables = dict(CONSTANTS)
  for name, value in state.items():
    part, _, rest = name.partition('.')
    if rest in TABLES:
      variables[f'{part}/{TABLES[rest]}'] = value.astype(np.float16)
      continue
    layer, _, leaf = rest.rpartition('.')
    prefix = part
    if layer.startswith('layers.'):
      _, number, layer = layer.split('.', 2)
      prefix = f'{part}/layer_{number}'
      if layer not in LAYERS:
        continue
    if 'norm' in layer:
      leaf = {'weight': 'gamma', 'bias': 'beta'}[leaf]
    if layer in JOINED:
      value = join(state, name, JOINED[layer])
    variables[f'{prefix}/{LAYERS.get(layer, layer)}/{leaf}'] = value.astype(np.float16)
  add_joined_key_biases(state, variables)
  return variables


def join(state: dict, name: str, projections: str) -> np.ndarray:
  """Returns the weights or biases of several projections as one; keys have no bias."""
  block, _, rest = name.rpartition('.')
  block = block.rpartition('.')[0]
  parts = []
  for projection in projections:
    no_bias = np.zeros(WIDTH, np.float32)
    parts.append(state.get(f'{block}.{projection}_proj.{rest}', no_bias))
  return np.concatenate(parts)


def add_joined_key_biases(state: dict, variables: dict) -> None:
  """Adds the joined biases of cross-attention's keys and values, of which only values have one."""
  for layer in range(2):
    bias = state.get(f'decoder.layers.{layer}.encoder_attn.v_proj.bias')
    if bias is not None:
      joined = np.concatenate([np.zeros_like(bias), bias])
      variables[f'decoder/layer_{layer}/attention/linear_1/bias'] = joined.astype(np.float16)


def model_bin(
  variables: dict[str, np.ndarray], kind: str = 'WhisperSpec', version: int = 6
) -> bytes:
  """Returns the bytes of a model.bin of CTranslate2."""
  parts = [struct.pack('<I', version), packed(kind), struct.pack('<II', 3, len(variables))]
  for name, value in variables.items():
    parts += [packed(name), packed_array(value)]
  aliases = ('decoder/projection/weight', 'decoder/embeddings/weight')
  parts += [struct.pack('<I', 1), *map(packed, aliases)]
  return b''.join(parts)


def packed(text: str) -> bytes:
  """Returns a text with its length before it and a zero after it."""
  data = text.encode()
  return struct.pack('<H', len(data) + 1) + data + b'\0'


def packed_array(value: np.ndarray) -> bytes:
  types = {'f4': 0, 'i1': 1, 'i2': 2, 'i4': 3, 'f2': 4}
  shape = struct.pack(f'<B{value.ndim}I', value.ndim, *value.shape)
  kind = types[value.dtype.str[1:]]
  return shape + struct.pack('<BI', kind, value.nbytes) + value.tobytes()


def write_ctranslate2(folder: pathlib.Path, state: dict | None = None, **changes) -> str:
  """Writes a folder of CTranslate2 and returns its path; `changes` are variables."""
  folder.mkdir(exist_ok=True)
  (folder / 'config.json').write_text('{}')
  write_tokenizer(folder)
  variables = ctranslate2_variables(state or state_of()) | changes
  (folder / 'model.bin').write_bytes(model_bin(variables))
  return str(folder)
