"""A small random Whisper for tests, in the layouts of Hugging Face and CTranslate2; its windows last one second."""

import json
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
CONFIG = {
  'model_type': 'whisper',
  'vocab_size': FIRST_TIME + 51,
  'num_mel_bins': 80,
  'd_model': 16,
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


def state_of(seed=8) -> dict:
  """{Hugging Face's name without 'model.': array} of random weights that float16 holds exactly."""
  rng = np.random.default_rng(seed)
  plain = {
    'encoder.conv1': (16, 80, 3),
    'encoder.conv2': (16, 16, 3),
    'encoder.layer_norm': (16,),
    'decoder.layer_norm': (16,),
  }
  for part, ffn in (('encoder', 24), ('decoder', 20)):
    for layer in range(2):
      for block in ['self_attn', *['encoder_attn'] * (part == 'decoder')]:
        plain |= {
          f'{part}.layers.{layer}.{block}.{x}_proj': (16, 16) for x in ('q', 'k', 'v', 'out')
        }
        plain[f'{part}.layers.{layer}.{block}_layer_norm'] = (16,)
      plain |= {
        f'{part}.layers.{layer}.fc1': (ffn, 16),
        f'{part}.layers.{layer}.fc2': (16, ffn),
        f'{part}.layers.{layer}.final_layer_norm': (16,),
      }
  shapes = {
    'encoder.embed_positions.weight': (50, 16),
    'decoder.embed_positions.weight': (24, 16),
    'decoder.embed_tokens.weight': (FIRST_TIME + 51, 16),
  }
  shapes |= {f'{name}.weight': shape for name, shape in plain.items()}
  shapes |= {
    f'{name}.bias': shape[:1] for name, shape in plain.items() if not name.endswith('k_proj')
  }

  def draw(shape):
    return rng.normal(0, 0.4, shape).astype(np.float16).astype(np.float32)

  return {name: draw(shape) for name, shape in shapes.items()}


def tokenizer() -> hf.Tokenizer:
  pieces = BYTES + [''.join(pair) for pair in MERGES]
  found = hf.Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, MERGES))
  found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  found.decoder = decoders.ByteLevel()
  found.add_special_tokens([f'<|{name}|>' for name in SPECIALS])
  return found


def write_tokenizer(folder, separate=False):
  """tokenizer.json, or the three files of older folders."""
  if not separate:
    tokenizer().save(str(folder / 'tokenizer.json'))
    return
  saved = json.loads(tokenizer().to_str())
  (folder / 'vocab.json').write_text(json.dumps(saved['model']['vocab']))
  (folder / 'merges.txt').write_text('#version: 0.2\n' + ''.join(f'{a} {b}\n' for a, b in MERGES))
  (folder / 'added_tokens.json').write_text(
    json.dumps({token['content']: token['id'] for token in saved['added_tokens']})
  )


def write_hugging_face(folder, state=None, **changes) -> str:
  folder.mkdir(exist_ok=True)
  (folder / 'config.json').write_text(json.dumps(CONFIG | changes))
  write_tokenizer(folder)
  save_file(
    {f'model.{name}': value for name, value in (state or state_of()).items()},
    str(folder / 'model.safetensors'),
  )
  return str(folder)


FUSED = {
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


def ctranslate2_variables(state: dict) -> dict:
  """The same under CTranslate2's names, projections of one input as one matrix, float16."""
  found = {
    'decoder/alignment_heads': np.array([[1, 0]], np.int16),
    'encoder/num_heads': np.array(2, np.int16),
    'decoder/num_heads': np.array(2, np.int16),
  }
  found |= {
    'decoder/pre_norm': np.array(1, np.int8),
    'decoder/scale_embeddings': np.array(0, np.int8),
    'decoder/activation': np.array(3, np.int8),
  }
  tables = {
    'embed_tokens.weight': 'embeddings/weight',
    'embed_positions.weight': 'position_encodings/encodings',
  }
  for name, value in state.items():
    part, _, rest = name.partition('.')
    if rest in tables:
      found[f'{part}/{tables[rest]}'] = value
      continue
    place, _, leaf = rest.rpartition('.')
    layer, inner = (
      (f'layer_{place.split(".")[1]}/', place.split('.', 2)[2])
      if place.startswith('layers.')
      else ('', place)
    )
    if 'norm' in place:
      leaf = {'weight': 'gamma', 'bias': 'beta'}[leaf]
    else:
      leaf = leaf
    joined = {'self_attn.q_proj': 'qkv', 'encoder_attn.k_proj': 'kv'}.get(inner, '')
    if joined:
      block = f'{part}.{place.rpartition(".")[0]}'
      value = np.concatenate(
        [state.get(f'{block}.{x}_proj.{leaf}', np.zeros(16, np.float32)) for x in joined]
      )
    elif inner not in FUSED and layer:
      continue
    found[f'{part}/{layer}{FUSED.get(inner, inner)}/{leaf}'] = value
  if (
    'decoder/layer_0/attention/linear_1/weight' in found
  ):  # a bias of the keys stands only in the joined vector
    for layer in range(2):
      bias = state[f'decoder.layers.{layer}.encoder_attn.v_proj.bias']
      found[f'decoder/layer_{layer}/attention/linear_1/bias'] = np.concatenate(
        [np.zeros_like(bias), bias]
      )
  return {
    name: value.astype(np.float16) if value.dtype == np.float32 else value
    for name, value in found.items()
  }


def model_bin(variables: dict, kind='WhisperSpec', version=6) -> bytes:
  types = {'f4': 0, 'i1': 1, 'i2': 2, 'i4': 3, 'f2': 4}

  def text(name):
    return struct.pack('<H', len(name.encode()) + 1) + name.encode() + b'\0'

  parts = [struct.pack('<I', version), text(kind), struct.pack('<II', 3, len(variables))]
  for name, value in variables.items():
    parts += [
      text(name),
      struct.pack(f'<B{value.ndim}I', value.ndim, *value.shape),
      struct.pack('<BI', types[value.dtype.str[1:]], value.nbytes),
      value.tobytes(),
    ]
  return b''.join(
    [
      *parts,
      struct.pack('<I', 1),
      text('decoder/projection/weight'),
      text('decoder/embeddings/weight'),
    ]
  )


def write_ctranslate2(folder, state=None, **changes) -> str:
  folder.mkdir(exist_ok=True)
  (folder / 'config.json').write_text('{}')
  write_tokenizer(folder)
  (folder / 'model.bin').write_bytes(
    model_bin(ctranslate2_variables(state or state_of()) | changes)
  )
  return str(folder)
