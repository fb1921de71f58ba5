"""GPT-2 (Radford et al. 2019) from a Hugging Face folder, and back.

The folder holds config.json, model.safetensors, and tokenizer.json or vocab.json with merges.txt.

Its vocabulary has one special token, <|endoftext|>: it begins texts, ends them and fills batches,
where it is masked. There is no unknown token: byte-level BPE encodes every text.

Axes: V vocabulary, D width, H heads, E width of a head.
"""

import json
import pathlib
from typing import Any

import numpy as np
import tokenizers as hf
from flax.traverse_util import unflatten_dict
from safetensors.numpy import save
from tokenizers import decoders, models, pre_tokenizers

from mmlm.data.tokenizers.special_tokens import DEFAULT_SPECIAL_TOKENS, SpecialTokens
from mmlm.data.tokenizers.tokenizer import Tokenizer
from mmlm.pretrained.formats.safetensors_files import Shape, check_shapes, read_safetensors
from mmlm.utils.errors import UserError
from mmlm.utils.pytree import flat
from mmlm.utils.run_dir import write_atomic, write_json

State = dict[str, np.ndarray]  # {name in the file: array}
Merges = list[tuple[str, str]]

END = '<|endoftext|>'
# Hugging Face's name of an activation: ours.
ACTIVATIONS = {
  'gelu_new': 'gelu',
  'gelu_pytorch_tanh': 'gelu',
  'gelu': 'gelu_exact',
  'relu': 'relu',
  'silu': 'silu',
}
# Our name below transformer/block_N: Hugging Face's name below h.N.
LAYERS = {
  'self_norm': 'ln_1',
  'self_attention/out': 'attn.c_proj',
  'ffn_norm': 'ln_2',
  'ffn/up': 'mlp.c_fc',
  'ffn/down': 'mlp.c_proj',
}
PROJECTIONS = ('query', 'key', 'value')  # side by side in attn.c_attn
BUFFERS = ('.attn.bias', '.attn.masked_bias')  # masks, no parameters
# Attributes of a decoder that has the shape of a GPT-2.
SHAPE_OF_GPT2 = {
  'positions': 'learned',
  'pre_norm': True,
  'gated': False,
  'kv_heads': 0,
  'tied': True,
  'scaled': False,
  'scan': False,
}


def _read_config(name: str) -> tuple[pathlib.Path, dict[str, Any]]:
  folder = pathlib.Path(name).expanduser()
  for file in ('config.json', 'model.safetensors'):
    if not (folder / file).is_file():
      raise UserError(
        f'{name}: no {file}. A GPT-2 is a folder with config.json, model.safetensors, and '
        'tokenizer.json or vocab.json and merges.txt.'
      )
  config = json.loads((folder / 'config.json').read_text(encoding='utf-8'))
  model_type = config.get('model_type')
  activation = config.get('activation_function')
  is_readable = (
    model_type == 'gpt2'
    and config.get('activation_function', 'gelu_new') in ACTIVATIONS
    and not config.get('scale_attn_by_inverse_layer_idx')
    and config.get('scale_attn_weights', True)
  )
  if not is_readable:
    raise UserError(
      f'{folder}/config.json: model_type {model_type!r} with {activation!r} is no GPT-2 that '
      'can be read.'
    )
  return folder, config


def gpt2_options(name: str, **changes: Any) -> tuple[dict[str, Any], dict[str, int]]:
  """Returns options of the decoder for the weights `name`, and {'dim', 'max_length'}."""
  _, config = _read_config(name)
  options = {
    'name': 'transformer_decoder',
    'pretrained': name,
    'layers': config['n_layer'],
    'heads': config['n_head'],
    'ffn_dim': config.get('n_inner') or 0,
    'activation': ACTIVATIONS[config.get('activation_function', 'gelu_new')],
    'positions': 'learned',
    'pre_norm': True,
    'scaled': False,
    'hidden_dropout': False,
    'epsilon': config.get('layer_norm_epsilon', 1e-5),
  }
  return options | changes, {'dim': config['n_embd'], 'max_length': config['n_positions']}


# Tokenizer


def load_gpt2_tokenizer(name: str) -> Tokenizer:
  """Loads its byte-level BPE; texts are not normalised."""
  folder, _ = _read_config(name)
  pieces, merges = _read_vocabulary(folder)
  vocabulary = {piece: i for i, piece in enumerate(pieces)}
  tokenizer = hf.Tokenizer(models.BPE(vocabulary, merges))
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  tokenizer.add_special_tokens([END])
  end = vocabulary[END]
  special_tokens = SpecialTokens(pad_id=end, bos_id=end, eos_ids=(end,), unk_id=None)
  return Tokenizer('gpt2', tokenizer.to_str(), special_tokens=special_tokens)


def _read_vocabulary(folder: pathlib.Path) -> tuple[list[str], Merges]:
  """Reads the pieces in the order of their ids, and the merges."""
  try:
    if (folder / 'tokenizer.json').is_file():
      ids, merges = _read_tokenizer_json(folder / 'tokenizer.json')
    else:
      ids = json.loads((folder / 'vocab.json').read_text(encoding='utf-8'))
      merges = _read_merges(folder / 'merges.txt')
  except (OSError, KeyError, ValueError) as error:
    raise UserError(
      f'{folder}: its vocabulary cannot be read ({error!r}). It is tokenizer.json, or vocab.json '
      'and merges.txt.'
    ) from None
  pieces = sorted(ids, key=ids.__getitem__)
  numbers = [ids[piece] for piece in pieces]
  if END not in ids or numbers != list(range(len(pieces))):
    raise UserError(f'{folder}: no {END} in its vocabulary, or ids are missing.')
  return pieces, merges


def _read_tokenizer_json(path: pathlib.Path) -> tuple[dict[str, int], Merges]:
  content = json.loads(path.read_text(encoding='utf-8'))
  ids = dict(content['model']['vocab'])
  for token in content.get('added_tokens', []):
    ids[token['content']] = token['id']
  merges = []
  for merge in content['model']['merges']:
    pair = merge.split(' ') if isinstance(merge, str) else merge
    merges.append(tuple(pair))
  return ids, merges


def _read_merges(path: pathlib.Path) -> Merges:
  merges = []
  for line in path.read_text(encoding='utf-8').split('\n'):
    if line and not line.startswith('#version'):
      merges.append(tuple(line.split(' ')))
  return merges


# Parameters


def load_gpt2(name: str) -> dict[str, Any]:
  """Loads the parameters of the decoder from model.safetensors, as numpy float32.

  Raises:
    UserError: the file is damaged, or a variable is missing, unknown or misshapen.
  """
  folder, config = _read_config(name)
  state = _read_state(folder)
  pieces, _ = _read_vocabulary(folder)
  title = f'{folder}/model.safetensors is not the GPT-2 of its config.json'
  check_shapes(state, _shapes(config, len(pieces)), title)
  params = {
    'tokens/table': state['wte.weight'],
    'position/positions': state['wpe.weight'],
    **_norm(state, 'ln_f', 'transformer/norm'),
  }
  for layer in range(config['n_layer']):
    params |= _block(state, layer, config['n_head'], config['n_embd'])
  return unflatten_dict(params, sep='/')


def _read_state(folder: pathlib.Path) -> State:
  """Reads {name: array} of model.safetensors, float32, without what the other variables imply."""
  path = folder / 'model.safetensors'
  state = {}
  for name, array in read_safetensors(path, 'transformer.').items():
    if not name.endswith(BUFFERS):
      state[name] = array.astype(np.float32)
  output = state.pop('lm_head.weight', None)
  if output is None:
    return state
  table = state.get('wte.weight')
  if table is None or not np.array_equal(output, table):
    raise UserError(f'{path}: its output is not tied to its input, which ours must be.')
  return state


def _norm(state: State, theirs: str, ours: str) -> State:
  return {f'{ours}/scale': state[f'{theirs}.weight'], f'{ours}/bias': state[f'{theirs}.bias']}


def _block(state: State, layer: int, heads: int, width: int) -> State:
  """Returns {our path: array} of one layer."""
  path = f'transformer/block_{layer}'
  params = {}
  for ours, theirs in LAYERS.items():
    name = f'h.{layer}.{theirs}'
    if ours.endswith('norm'):
      params |= _norm(state, name, f'{path}/{ours}')
      continue
    kernel = state[f'{name}.weight']  # [in, out] as ours: GPT-2 has 1 x 1 convolutions
    if ours.endswith('out'):
      kernel = kernel.reshape(heads, -1, width)  # [H, E, D]
    params[f'{path}/{ours}/kernel'] = kernel
    params[f'{path}/{ours}/bias'] = state[f'{name}.bias']
  kernels = np.split(state[f'h.{layer}.attn.c_attn.weight'], 3, -1)
  biases = np.split(state[f'h.{layer}.attn.c_attn.bias'], 3, -1)
  for projection, kernel, bias in zip(PROJECTIONS, kernels, biases):
    name = f'{path}/self_attention/{projection}'
    params[f'{name}/kernel'] = kernel.reshape(width, heads, -1)  # [D, H, E]
    params[f'{name}/bias'] = bias.reshape(heads, -1)
  return params


def _shapes(config: dict[str, Any], vocab_size: int) -> dict[str, Shape]:
  """Returns {name in the file: shape} of a GPT-2 of this config."""
  width = config['n_embd']
  inner = config.get('n_inner') or 4 * width
  of_block = {
    'ln_1': (width,),
    'attn.c_attn': (width, 3 * width),
    'attn.c_proj': (width, width),
    'ln_2': (width,),
    'mlp.c_fc': (width, inner),
    'mlp.c_proj': (inner, width),
  }
  weights: dict[str, Shape] = {'ln_f': (width,)}
  for layer in range(config['n_layer']):
    for part, shape in of_block.items():
      weights[f'h.{layer}.{part}'] = shape
  shapes: dict[str, Shape] = {
    'wte.weight': (vocab_size, width),
    'wpe.weight': (config['n_positions'], width),
  }
  for name, shape in weights.items():
    shapes[f'{name}.weight'] = shape
    shapes[f'{name}.bias'] = shape[-1:]
  return shapes


# Export


def export_gpt2(
  folder: str | pathlib.Path, head: Any, params: dict[str, Any], tokenizer: Tokenizer
) -> None:
  """Writes config.json, model.safetensors and tokenizer.json of a trained decoder of GPT-2's shape.

  Args:
    head: the decoder module; `params` are its parameters.

  Raises:
    UserError: GPT-2 has no such part, or the tokenizer is no byte-level BPE without normalisation.
  """
  activation = _check_decoder(head)
  _check_tokenizer(tokenizer)
  arrays = {name: np.asarray(leaf, np.float32) for name, leaf in flat(params).items()}
  bias = arrays.get('tokens/bias')
  if bias is not None and np.ptp(bias):
    raise UserError(
      'model.head.output_bias: its bias has learned something, and a GPT-2 has none. Freeze it: '
      "optimizer.rate_rules=(('.*/tokens/bias', 0.0), ('.*', 1.0))."
    )
  state = _exported(arrays, head.layers)
  config = {
    'model_type': 'gpt2',
    'architectures': ['GPT2LMHeadModel'],
    'activation_function': activation,
    'n_layer': head.layers,
    'n_head': head.heads,
    'n_embd': head.dim,
    'n_inner': head.ffn_dim or None,
    'n_positions': len(state['wpe.weight']),
    'vocab_size': tokenizer.vocab_size,
    'layer_norm_epsilon': head.epsilon,
    'tie_word_embeddings': True,
    'bos_token_id': tokenizer.bos_id,
    'eos_token_id': tokenizer.eos_id,
  }
  folder = pathlib.Path(folder)
  write_json(folder / 'config.json', config)
  write_json(folder / 'tokenizer.json', tokenizer.to_dict())
  tensors = {}
  for name, array in state.items():
    tensors[f'transformer.{name}'] = np.ascontiguousarray(array)
  write_atomic(folder / 'model.safetensors', save(tensors, {'format': 'pt'}))


def _check_decoder(head: Any) -> str:
  """Returns Hugging Face's name of the activation; UserError for another shape than GPT-2's."""
  wrong = {}
  for name, value in SHAPE_OF_GPT2.items():
    actual = getattr(head, name, None)
    if actual != value:
      wrong[name] = actual
  if wrong:
    raise UserError(f'a GPT-2 has {SHAPE_OF_GPT2}: this decoder has {wrong}.')
  for theirs, ours in ACTIVATIONS.items():
    if ours == head.activation:
      return theirs
  raise UserError(f'a GPT-2 has no activation {head.activation!r}.')


def _check_tokenizer(tokenizer: Tokenizer) -> None:
  content = tokenizer.to_dict()
  is_byte_level_bpe = (
    content['model']['type'] == 'BPE'
    and content['pre_tokenizer']['type'] == 'ByteLevel'
    and not content['pre_tokenizer']['add_prefix_space']
  )
  if not is_byte_level_bpe:
    raise UserError(
      'tokenizer: a GPT-2 has a byte-level BPE that keeps texts as they are. '
      "Train with tokenizer.kind='bpe' and tokenizer.exact=True."
    )
  if tokenizer.kind == 'gpt2' and tokenizer.special_tokens == DEFAULT_SPECIAL_TOKENS:
    raise UserError(
      'tokenizer: this run was made by an earlier version, which re-ordered the vocabulary of '
      'GPT-2. Export it with that version, or train again.'
    )


def _exported(arrays: State, layers: int) -> State:
  """Returns {name in the file: array} from {our path: array}."""
  table = arrays['tokens/table']
  width = table.shape[1]
  state = {
    'wte.weight': table,
    'wpe.weight': arrays['position/positions'],
    **_exported_norm(arrays, 'transformer/norm', 'ln_f'),
  }
  for layer in range(layers):
    path = f'transformer/block_{layer}'
    for ours, theirs in LAYERS.items():
      name = f'h.{layer}.{theirs}'
      if ours.endswith('norm'):
        state |= _exported_norm(arrays, f'{path}/{ours}', name)
        continue
      kernel = arrays[f'{path}/{ours}/kernel']
      if ours.endswith('out'):
        kernel = kernel.reshape(-1, width)
      state[f'{name}.weight'] = kernel
      state[f'{name}.bias'] = arrays[f'{path}/{ours}/bias']
    kernels = []
    biases = []
    for projection in PROJECTIONS:
      kernels.append(arrays[f'{path}/self_attention/{projection}/kernel'].reshape(width, -1))
      biases.append(arrays[f'{path}/self_attention/{projection}/bias'].reshape(-1))
    state[f'h.{layer}.attn.c_attn.weight'] = np.concatenate(kernels, -1)
    state[f'h.{layer}.attn.c_attn.bias'] = np.concatenate(biases, -1)
  return state


def _exported_norm(arrays: State, ours: str, theirs: str) -> State:
  return {f'{theirs}.weight': arrays[f'{ours}/scale'], f'{theirs}.bias': arrays[f'{ours}/bias']}
