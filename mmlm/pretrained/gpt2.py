"""A GPT-2 (Radford et al. 2019) on disk: Hugging Face's folder (config.json, model.safetensors, vocab.json with merges.txt or tokenizer.json)
-> options, tokenizer and parameters of our decoder, and back.

Its vocabulary has one special token, <|endoftext|>: it begins texts, ends them and fills batches, where it is masked. No token stands for
unknown text, byte-level BPE encodes every text.

Axes: V vocabulary, D width, H heads, E width of a head.
"""

import json
import pathlib

import numpy as np
import tokenizers as hf
from flax.traverse_util import unflatten_dict
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from tokenizers import decoders, models, pre_tokenizers

from mmlm.data.tokenizers.special_tokens import SpecialTokens
from mmlm.data.tokenizers.tokenizer import Tokenizer
from mmlm.utils.errors import UserError
from mmlm.utils.pytree import differences, flat
from mmlm.utils.run_dir import write_atomic, write_json

END = '<|endoftext|>'
ACTIVATIONS = {
  'gelu_new': 'gelu',
  'gelu_pytorch_tanh': 'gelu',
  'gelu': 'gelu_exact',
  'relu': 'relu',
  'silu': 'silu',
}
# Ours below transformer/block_N: theirs below h.N.
LAYERS = {
  'self_norm': 'ln_1',
  'self_attention/out': 'attn.c_proj',
  'ffn_norm': 'ln_2',
  'ffn/up': 'mlp.c_fc',
  'ffn/down': 'mlp.c_proj',
}
PARTS = ('query', 'key', 'value')  # side by side in attn.c_attn


def _read_config(name: str) -> tuple[pathlib.Path, dict]:
  folder = pathlib.Path(name).expanduser()
  for file in ('config.json', 'model.safetensors'):
    if not (folder / file).is_file():
      raise UserError(
        f'{name}: no {file}. A GPT-2 is a folder with config.json, model.safetensors, and tokenizer.json or vocab.json and merges.txt.'
      )
  config = json.loads((folder / 'config.json').read_text(encoding='utf-8'))
  plain = not config.get('scale_attn_by_inverse_layer_idx') and config.get(
    'scale_attn_weights', True
  )
  if (
    config.get('model_type') != 'gpt2'
    or config.get('activation_function', 'gelu_new') not in ACTIVATIONS
    or not plain
  ):
    raise UserError(
      f'{folder}/config.json: model_type {config.get("model_type")!r} with {config.get("activation_function")!r} is no GPT-2 that can be read.'
    )
  return folder, config


def gpt2_options(name: str, **changes) -> tuple[dict, dict]:
  """The options of our decoder for the weights `name`, and {'dim', 'max_length'}, to stand in a config."""
  _, config = _read_config(name)
  return {
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
  } | changes, {'dim': config['n_embd'], 'max_length': config['n_positions']}


def load_gpt2_tokenizer(name: str) -> Tokenizer:
  """Loads its byte-level BPE; texts are kept as they are."""
  folder, _ = _read_config(name)
  words, merges = _vocabulary(folder)
  vocabulary = {word: i for i, word in enumerate(words)}
  tokenizer = hf.Tokenizer(models.BPE(vocabulary, merges))
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  tokenizer.add_special_tokens([END])
  end = vocabulary[END]
  special_tokens = SpecialTokens(pad_id=end, bos_id=end, eos_ids=(end,), unk_id=None)
  return Tokenizer('gpt2', tokenizer.to_str(), special_tokens=special_tokens)


def _vocabulary(folder: pathlib.Path) -> tuple[list[str], list[tuple[str, str]]]:
  """Words in the order of their ids, and merges."""
  try:
    if (folder / 'tokenizer.json').is_file():
      model = json.loads((folder / 'tokenizer.json').read_text(encoding='utf-8'))
      ids = model['model']['vocab'] | {
        token['content']: token['id'] for token in model.get('added_tokens', [])
      }
      merges = []
      for merge in model['model']['merges']:
        merges.append(tuple(merge.split(' ')) if isinstance(merge, str) else tuple(merge))
    else:
      ids = json.loads((folder / 'vocab.json').read_text(encoding='utf-8'))
      lines = (folder / 'merges.txt').read_text(encoding='utf-8').split('\n')
      merges = []
      for line in lines:
        if line and not line.startswith('#version'):
          merges.append(tuple(line.split(' ')))
  except (OSError, KeyError, ValueError) as error:
    raise UserError(
      f'{folder}: its vocabulary cannot be read ({error!r}). It is tokenizer.json, or vocab.json and merges.txt.'
    ) from None
  words = sorted(ids, key=ids.get)
  if END not in ids or [ids[word] for word in words] != list(range(len(words))):
    raise UserError(f'{folder}: no {END} in its vocabulary, or ids are missing.')
  return words, merges


def load_gpt2(name: str) -> dict:
  """Parameters of our decoder from model.safetensors, numpy float32.

  Raises:
    UserError: the file is damaged, or a variable is missing, unknown or misshapen.
  """
  folder, config = _read_config(name)
  state, (words, _) = _state(folder), _vocabulary(folder)
  found = {key: value.shape for key, value in state.items()}
  wanted = _shapes(config, len(words))
  if bad := differences(found, wanted):
    raise UserError(
      '\n  '.join(
        [
          f'{folder}/model.safetensors is not the GPT-2 of its config.json; {len(bad)} variables differ (in the file -> expected):',
          *bad[:20],
        ]
      )
    )
  params = {
    'tokens/table': state['wte.weight'],
    'position/positions': state['wpe.weight'],
    **_norm(state, 'ln_f', 'transformer/norm'),
  }
  heads = config['n_head']
  width = config['n_embd']
  for layer in range(config['n_layer']):
    place = f'transformer/block_{layer}'
    source = f'h.{layer}'
    for ours, theirs in LAYERS.items():
      if ours.endswith('norm'):
        params |= _norm(state, f'{source}.{theirs}', f'{place}/{ours}')
        continue
      kernel = state[
        f'{source}.{theirs}.weight'
      ]  # as ours, inputs first: GPT-2 has 1 x 1 convolutions
      params |= {
        f'{place}/{ours}/kernel': kernel.reshape(heads, -1, width)
        if ours.endswith('out')
        else kernel,
        f'{place}/{ours}/bias': state[f'{source}.{theirs}.bias'],
      }
    joined = state[f'{source}.attn.c_attn.weight'], state[f'{source}.attn.c_attn.bias']
    for part, kernel, bias in zip(PARTS, *(np.split(array, 3, -1) for array in joined)):
      name = f'{place}/self_attention/{part}'
      params |= {
        f'{name}/kernel': kernel.reshape(width, heads, -1),
        f'{name}/bias': bias.reshape(heads, -1),
      }
  return unflatten_dict(params, sep='/')


def _norm(state: dict, theirs: str, ours: str) -> dict:
  return {
    f'{ours}/scale': state[f'{theirs}.weight'],
    f'{ours}/bias': state[f'{theirs}.bias'],
  }


def _state(folder: pathlib.Path) -> dict:
  """{name: array} of model.safetensors, float32, without what can be told from the rest."""
  path = folder / 'model.safetensors'
  try:
    with safe_open(str(path), 'numpy') as file:
      state = {}
      for key in sorted(file.keys()):
        state[key.removeprefix('transformer.')] = file.get_tensor(key).astype(np.float32)
  except (SafetensorError, OSError, ValueError) as error:
    raise UserError(f'{path}: cannot be read ({error}).') from None
  head = state.pop('lm_head.weight', None)
  if head is not None and not np.array_equal(head, state.get('wte.weight')):
    raise UserError(f'{path}: its output is not tied to its input, which ours must be.')
  result = {}
  for key, value in state.items():
    if not key.endswith(('.attn.bias', '.attn.masked_bias')):
      result[key] = value
  return result


def _shapes(config: dict, words: int) -> dict:
  """{name in the file: shape} of a GPT-2 of this config."""
  width = config['n_embd']
  inner = config.get('n_inner') or 4 * width
  shapes = {'wte.weight': (words, width), 'wpe.weight': (config['n_positions'], width)}
  linear = {
    'attn.c_attn': (width, 3 * width),
    'attn.c_proj': (width, width),
    'mlp.c_fc': (width, inner),
    'mlp.c_proj': (inner, width),
  }
  parts = {
    f'h.{layer}.{part}': shape
    for layer in range(config['n_layer'])
    for part, shape in (linear | dict.fromkeys(('ln_1', 'ln_2'), (width,))).items()
  }
  for name, shape in {'ln_f': (width,), **parts}.items():
    shapes |= {f'{name}.weight': shape, f'{name}.bias': shape[-1:]}
  return shapes


def export_gpt2(folder, head, params: dict, tokenizer: Tokenizer) -> None:
  """Writes config.json, model.safetensors and tokenizer.json of a trained decoder of GPT-2's shape.

  Args:
    head: its module; `params` are its parameters.

  Raises:
    UserError: GPT-2 has no such part, or the tokenizer is another than byte-level BPE that keeps texts as they are.
  """
  needed = {
    'positions': 'learned',
    'pre_norm': True,
    'gated': False,
    'kv_heads': 0,
    'tied': True,
    'scaled': False,
    'scan': False,
  }
  bad = {}
  for name, value in needed.items():
    if getattr(head, name, None) != value:
      bad[name] = getattr(head, name, None)
  activation = next(
    (theirs for theirs, ours in ACTIVATIONS.items() if ours == getattr(head, 'activation', '')),
    None,
  )
  if bad or activation is None:
    raise UserError(f'a GPT-2 has {needed}: this decoder has {bad or head.activation}.')
  _check_tokenizer(tokenizer)
  whole = {name: np.asarray(leaf, np.float32) for name, leaf in flat(params).items()}
  if 'tokens/bias' in whole and np.ptp(whole['tokens/bias']):
    raise UserError(
      "model.head.output_bias: its bias has learned something, and a GPT-2 has none. Freeze it: optimizer.rate_rules=(('.*/tokens/bias', 0.0), ('.*', 1.0))."
    )
  state = _exported(whole, head.layers)
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
  write_atomic(
    folder / 'model.safetensors',
    save(
      {f'transformer.{key}': np.ascontiguousarray(value) for key, value in state.items()},
      {'format': 'pt'},
    ),
  )


def _check_tokenizer(tokenizer: Tokenizer) -> None:
  saved = tokenizer.to_dict()
  if (
    saved['model']['type'] != 'BPE'
    or saved['pre_tokenizer']['type'] != 'ByteLevel'
    or saved['pre_tokenizer']['add_prefix_space']
  ):
    raise UserError(
      "tokenizer: a GPT-2 has a byte-level BPE that keeps texts as they are. Train with tokenizer.kind='bpe' and tokenizer.exact=True."
    )
  if tokenizer.kind == 'gpt2' and tokenizer.special_tokens == SpecialTokens():
    raise UserError(
      'tokenizer: this run was made by an earlier version, which re-ordered the vocabulary of GPT-2. '
      'Export it with that version, or train again.'
    )


def _exported(whole: dict, layers: int) -> dict:
  """{name in the file: array} from {our name: array}."""

  def norm(ours, theirs):
    return {
      f'{theirs}.weight': whole[f'{ours}/scale'],
      f'{theirs}.bias': whole[f'{ours}/bias'],
    }

  state = {
    'wte.weight': whole['tokens/table'],
    'wpe.weight': whole['position/positions'],
    **norm('transformer/norm', 'ln_f'),
  }
  width = state['wte.weight'].shape[1]
  for layer in range(layers):
    place = f'transformer/block_{layer}'
    target = f'h.{layer}'
    for ours, theirs in LAYERS.items():
      if ours.endswith('norm'):
        state |= norm(f'{place}/{ours}', f'{target}.{theirs}')
      else:
        kernel = whole[f'{place}/{ours}/kernel']
        state |= {
          f'{target}.{theirs}.weight': kernel.reshape(-1, width)
          if ours.endswith('out')
          else kernel,
          f'{target}.{theirs}.bias': whole[f'{place}/{ours}/bias'],
        }
    for kind, name in (('kernel', 'weight'), ('bias', 'bias')):
      parts = [whole[f'{place}/self_attention/{part}/{kind}'] for part in PARTS]
      shape = (width, -1) if kind == 'kernel' else (-1,)
      state[f'{target}.attn.c_attn.{name}'] = np.concatenate(
        [part.reshape(shape) for part in parts], -1
      )
  return state
