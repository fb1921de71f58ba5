"""A GPT-2 read from Hugging Face's folder and written again: vocabulary, weights, log-probabilities."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mmlm.data.tokenizers.tokenizer import BOS, EOS, SPECIALS, Tokenizer, train_tokenizer
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


def test_texts_are_kept_and_ids_are_in_our_order(tmp_path):
  name = write(tmp_path / 'gpt2')
  tokenizer = load_gpt2_tokenizer(name)
  words = vocabulary()[0]
  assert tokenizer.pieces == [*SPECIALS, *words[:-1]] and tokenizer.whole
  tokenizer.save(tmp_path / 'tokenizer.json')
  loaded = Tokenizer.load(tmp_path / 'tokenizer.json')
  assert loaded.decode_batch(loaded.encode_batch(TEXTS)) == TEXTS
  assert len(loaded.encode('the')) == 1 and loaded.encode(END) != [EOS]  # in a text it is text
  table = load_gpt2(name)['tokens']['table']
  theirs = state_of(len(words))['wte.weight']
  np.testing.assert_array_equal(table[EOS], theirs[-1])
  np.testing.assert_array_equal(table[BOS], theirs[-1])
  np.testing.assert_array_equal(table[len(SPECIALS) :], theirs[:-1])


def test_what_the_vocabulary_lacks_is_never_written(tmp_path):
  name = write(tmp_path / 'gpt2')
  found = np.exp(log_probs(name, jnp.array([[BOS, 10, 20, 30]])))
  assert found[..., [0, 1, 3]].max() == 0
  np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-5)
  assert found[..., EOS].min() > 0


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
  learned = params | {
    'tokens': params['tokens']
    | {'bias': params['tokens']['bias'] + np.arange(len(params['tokens']['bias']))}
  }
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
    assert [words[i] for i in theirs(text)['input_ids']] == [
      tokenizer.pieces[i] for i in tokenizer.encode(text)
    ]
  rng = np.random.default_rng(1)
  numbers = rng.integers(len(words) - 1, size=(2, 12))
  order = [len(words) - 1, *range(len(words) - 1)]  # of theirs: that of EOS and the words of ours

  def check(folder):
    model = transformers.GPT2LMHeadModel.from_pretrained(folder).eval()
    with torch.no_grad():
      wanted = (
        model(torch.tensor(np.concatenate([np.full((2, 1), len(words) - 1), numbers], 1)))
        .logits.log_softmax(-1)
        .numpy()
      )
    ours = log_probs(
      name, jnp.array(np.concatenate([np.full((2, 1), BOS), numbers + len(SPECIALS)], 1))
    )
    np.testing.assert_allclose(
      np.asarray(ours)[..., [EOS, *range(len(SPECIALS), ours.shape[-1])]],
      wanted[..., order],
      atol=1e-4,
    )

  check(name)
  export_gpt2(tmp_path / 'again', head_of(name), load_gpt2(name), tokenizer)
  check(str(tmp_path / 'again'))
