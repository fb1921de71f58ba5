"""A GPT-2 read from Hugging Face's folder and written again: vocabulary, weights,
log-probabilities.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mmlm.data.tokenizers.special_tokens import SpecialTokens
from mmlm.data.tokenizers.tokenizer import Tokenizer
from mmlm.data.tokenizers.train_tokenizer import SPECIAL_PIECES as SPECIALS
from mmlm.data.tokenizers.train_tokenizer import train_tokenizer
from mmlm.decoding.search import search
from mmlm.decoding.search_options import SearchOptions
from mmlm.models.heads import HEADS
from mmlm.pretrained.gpt2 import END, export_gpt2, gpt2_options, load_gpt2, load_gpt2_tokenizer
from mmlm.utils.errors import UserError
from mmlm.utils.pytree import flat

CONFIG = {
  'model_type': 'gpt2',
  'activation_function': 'gelu_new',
  'n_layer': 2,
  'n_head': 2,
  'n_embd': 8,
  'n_inner': None,
  'n_positions': 16,
  'layer_norm_epsilon': 1e-5,
  'bos_token_id': 261,
  'eos_token_id': 261,
}
TEXTS = ['the cat  sat\n', ' naïve 日本']


def vocabulary():
  """Words and merges of a byte-level BPE, the end last."""
  model = train_tokenizer(['the the the cat cat'], 'bpe', 265, exact=True).to_dict()['model']
  words = sorted(model['vocab'], key=model['vocab'].get)[len(SPECIALS) :]
  return [*words, END], [tuple(merge) for merge in model['merges']]


def state_of(words: int) -> dict:
  rng = np.random.default_rng(0)
  shapes = {'wte.weight': (words, 8), 'wpe.weight': (16, 8), 'ln_f.weight': (8,), 'ln_f.bias': (8,)}
  for layer in range(2):
    for name, shape in {
      'attn.c_attn': (8, 24),
      'attn.c_proj': (8, 8),
      'mlp.c_fc': (8, 32),
      'mlp.c_proj': (32, 8),
      'ln_1': (8,),
      'ln_2': (8,),
    }.items():
      shapes |= {f'h.{layer}.{name}.weight': shape, f'h.{layer}.{name}.bias': shape[-1:]}
  return {name: rng.normal(0, 0.5, shape).astype(np.float32) for name, shape in shapes.items()}


def write(folder, prefix='transformer.', state=None, **changes):
  folder.mkdir(exist_ok=True)
  words, merges = vocabulary()
  (folder / 'config.json').write_text(json.dumps(CONFIG | {'vocab_size': len(words)} | changes))
  (folder / 'vocab.json').write_text(json.dumps({word: i for i, word in enumerate(words)}))
  (folder / 'merges.txt').write_text('#version: 0.2\n' + ''.join(f'{a} {b}\n' for a, b in merges))
  if state is None:
    state = state_of(len(words))
  else:
    state = state
  save_file(
    {f'{prefix}{name}': value for name, value in state.items()}, str(folder / 'model.safetensors')
  )
  return str(folder)


def head_of(name):
  options, sizes = gpt2_options(name)
  options.pop('name')
  return HEADS['transformer_decoder'](
    vocab_size=len(load_gpt2(name)['tokens']['table']), **sizes, **options
  )


def log_probs(name, tokens):
  head = head_of(name)
  params = load_gpt2(name)
  return jax.jit(lambda: jax.nn.log_softmax(head.apply({'params': params}, tokens, None)))()


def test_texts_are_kept_and_ids_are_those_of_the_file(tmp_path):
  name = write(tmp_path / 'gpt2')
  tokenizer = load_gpt2_tokenizer(name)
  words = vocabulary()[0]
  assert tokenizer.pieces == words and tokenizer.lossless
  tokenizer.save(tmp_path / 'tokenizer.json')
  loaded = Tokenizer.load(tmp_path / 'tokenizer.json')
  assert loaded.decode_batch(loaded.encode_batch(TEXTS)) == TEXTS
  end = words.index(END)
  assert (loaded.pad_id, loaded.bos_id, loaded.eos_ids, loaded.unk_id) == (end, end, (end,), None)
  assert len(loaded.encode('the')) == 1 and end not in loaded.encode(END)  # in a text it is text
  table = load_gpt2(name)['tokens']['table']
  theirs = state_of(len(words))['wte.weight']
  np.testing.assert_array_equal(table, theirs)


def test_a_search_stops_at_the_token_that_also_begins_and_pads(tmp_path):
  name = write(tmp_path / 'gpt2')
  end = vocabulary()[0].index(END)

  def step(tokens, cache):
    logits = jnp.stack([jnp.full(end + 1, -5.0).at[jnp.array([10, end])].set(jnp.array([1.0, 0]))])
    return jnp.where(cache['position'] > 1, logits.at[:, end].set(9.0), logits), {
      'position': cache['position'] + 1
    }

  ids = load_gpt2_tokenizer(name).special_tokens
  for method in ('greedy', 'beam'):
    options = SearchOptions(
      method,
      max_length=5,
      beam_size=1,
      length_penalty=0.0,
      pad_id=ids.pad_id,
      bos_id=ids.bos_id,
      eos_ids=ids.eos_ids,
    )
    result = search(step, {'position': jnp.int32(0)}, options, jnp.array([[ids.bos_id]]))
    assert result.tokens[0, 0].tolist() == [10, 10, end, end, end] and result.lengths[0, 0] == 3


def test_a_run_with_a_reordered_vocabulary_loads_and_is_not_exported(tmp_path):
  """Earlier versions put their four special tokens before those of GPT-2."""
  name = write(tmp_path / 'gpt2')
  content = load_gpt2_tokenizer(name).to_dict()
  path = tmp_path / 'tokenizer.json'
  path.write_text(json.dumps({'kind': 'gpt2', 'tokenizer': content, 'casing': {}}))
  earlier = Tokenizer.load(path)
  assert earlier.special_tokens == SpecialTokens()
  with pytest.raises(UserError, match='re-ordered the vocabulary of GPT-2'):
    export_gpt2(tmp_path / 'other', head_of(name), load_gpt2(name), earlier)


@pytest.mark.parametrize('prefix', ['', 'transformer.'])
def test_written_again_it_is_the_same(tmp_path, prefix):
  name = write(tmp_path / 'gpt2', prefix=prefix)
  params = load_gpt2(name)
  head = head_of(name)
  wanted = jax.eval_shape(lambda: head.init(jax.random.key(0), jnp.zeros((1, 3), jnp.int32), None))[
    'params'
  ]
  assert {key: leaf.shape for key, leaf in flat(wanted).items()} == {
    key: leaf.shape for key, leaf in flat(params).items()
  }
  export_gpt2(tmp_path / 'again', head, params, load_gpt2_tokenizer(name))
  again = load_file(tmp_path / 'again' / 'model.safetensors')
  for key, value in state_of(len(vocabulary()[0])).items():
    np.testing.assert_array_equal(again[f'transformer.{key}'], value)
  jax.tree.map(np.testing.assert_array_equal, load_gpt2(str(tmp_path / 'again')), params)
  assert load_gpt2_tokenizer(str(tmp_path / 'again')).pieces == load_gpt2_tokenizer(name).pieces


@pytest.mark.parametrize(
  'change, says',
  [
    ({'n_embd': 16}, 'is not the GPT-2 of its config.json; .* variables differ'),
    ({'model_type': 'bert'}, "model_type 'bert'"),
    ({'activation_function': 'mish'}, "'mish' is no GPT-2"),
    ({'scale_attn_by_inverse_layer_idx': True}, 'is no GPT-2'),
    ({'n_layer': 3}, r"h.2.attn.c_attn.bias: '\(absent\)'"),
  ],
)
def test_another_model_is_named(tmp_path, change, says):
  with pytest.raises(UserError, match=says):
    load_gpt2(write(tmp_path / 'gpt2', **change))


def test_a_damaged_or_missing_file_is_named(tmp_path):
  name = write(tmp_path / 'gpt2')
  path = tmp_path / 'gpt2' / 'model.safetensors'
  whole = path.read_bytes()
  path.write_bytes(whole[:-40])
  with pytest.raises(UserError, match='model.safetensors: cannot be read'):
    load_gpt2(name)
  path.unlink()
  with pytest.raises(UserError, match='no model.safetensors'):
    gpt2_options(name)
  path.write_bytes(whole)
  (tmp_path / 'gpt2' / 'merges.txt').unlink()
  with pytest.raises(UserError, match='its vocabulary cannot be read'):
    load_gpt2_tokenizer(name)
  untied = state_of(len(vocabulary()[0])) | {
    'lm_head.weight': np.zeros((len(vocabulary()[0]), 8), np.float32)
  }
  with pytest.raises(UserError, match='its output is not tied'):
    load_gpt2(write(tmp_path / 'gpt2', prefix='', state=untied))


def test_what_a_gpt2_cannot_hold_is_not_written(tmp_path):
  name = write(tmp_path / 'gpt2')
  head = head_of(name)
  params = load_gpt2(name)
  tokenizer = load_gpt2_tokenizer(name)
  with pytest.raises(UserError, match="'positions': 'rotary'"):
    export_gpt2(tmp_path / 'other', head.clone(positions='rotary'), params, tokenizer)
  bias = np.arange(len(params['tokens']['table']), dtype=np.float32)
  learned = params | {'tokens': params['tokens'] | {'bias': bias}}
  with pytest.raises(UserError, match='its bias has learned something'):
    export_gpt2(tmp_path / 'other', head, learned, tokenizer)
  with pytest.raises(UserError, match='byte-level BPE that keeps texts'):
    export_gpt2(
      tmp_path / 'other',
      head,
      params,
      train_tokenizer(TEXTS, 'char', len(params['tokens']['table'])),
    )
  assert not (tmp_path / 'other').exists()


@pytest.mark.parity
def test_log_probabilities_and_ids_are_those_of_transformers(tmp_path, peer):
  torch = peer('torch')
  transformers = peer('transformers')
  name = write(tmp_path / 'gpt2')
  tokenizer = load_gpt2_tokenizer(name)
  words = vocabulary()[0]
  theirs = transformers.GPT2TokenizerFast.from_pretrained(name)
  for text in TEXTS:
    assert theirs(text)['input_ids'] == tokenizer.encode(text)
  rng = np.random.default_rng(1)
  numbers = rng.integers(len(words) - 1, size=(2, 12))
  tokens = np.concatenate([np.full((2, 1), tokenizer.bos_id), numbers], 1)

  def check(folder):
    model = transformers.GPT2LMHeadModel.from_pretrained(folder).eval()
    with torch.no_grad():
      expected = model(torch.tensor(tokens)).logits.log_softmax(-1).numpy()
    np.testing.assert_allclose(log_probs(name, jnp.array(tokens)), expected, atol=1e-4)

  check(name)
  export_gpt2(tmp_path / 'again', head_of(name), load_gpt2(name), tokenizer)
  check(str(tmp_path / 'again'))
