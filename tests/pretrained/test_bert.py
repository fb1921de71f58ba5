"""A BERT read from Hugging Face's folder: vocabulary, weights, hidden states."""

import json

import jax
import numpy as np
import pytest
from program import refused, write_jsonl
from safetensors.numpy import save_file

from mmlm import config as configs
from mmlm.data.batching import Batch
from mmlm.data.tokenizers.tokenizer import Tokenizer
from mmlm.experiment.experiment import Experiment
from mmlm.models.encoders.bert_encoder import BertEncoder
from mmlm.pretrained.bert import bert_options, load_bert, load_pooler, load_wordpiece
from mmlm.utils.errors import UserError
from mmlm.utils.pytree import flat

WORDS = ['[PAD]', 'the', 'dog', '##s', '[UNK]', '[CLS]', 'run', '[SEP]', '[MASK]', '.']
PAD, THE, DOG, S, UNK, CLS, RUN, SEP, MASK, DOT = range(len(WORDS))
SIZES = {
  'hidden_size': 8,
  'num_hidden_layers': 2,
  'num_attention_heads': 2,
  'intermediate_size': 12,
  'max_position_embeddings': 16,
}
CONFIG = {'model_type': 'bert', 'hidden_act': 'gelu', 'layer_norm_eps': 1e-12, **SIZES}


def state_of(prefix=''):
  rng = np.random.default_rng(0)
  tables = {'word': len(WORDS), 'position': 16, 'token_type': 2}
  shapes = {f'embeddings.{kind}_embeddings.weight': (rows, 8) for kind, rows in tables.items()}
  shapes |= {'embeddings.LayerNorm.weight': (8,), 'embeddings.LayerNorm.bias': (8,)}
  for layer in range(2):
    linear = dict.fromkeys(
      [f'attention.self.{name}' for name in ('query', 'key', 'value')] + ['attention.output.dense'],
      (8, 8),
    )
    linear |= {
      'intermediate.dense': (12, 8),
      'output.dense': (8, 12),
      'attention.output.LayerNorm': (8,),
      'output.LayerNorm': (8,),
    }
    for name, shape in linear.items():
      shapes |= {
        f'encoder.layer.{layer}.{name}.weight': shape,
        f'encoder.layer.{layer}.{name}.bias': shape[:1],
      }
  return {
    prefix + name: rng.normal(0, 0.5, shape).astype(np.float32) for name, shape in shapes.items()
  }


def write(folder, config=CONFIG, words=WORDS, state=None, **changes):
  folder.mkdir(exist_ok=True)
  (folder / 'config.json').write_text(json.dumps(config | changes))
  (folder / 'vocab.txt').write_text('\n'.join(words) + '\n')
  (folder / 'tokenizer_config.json').write_text('{"do_lower_case": true}')
  save_file(state_of() if state is None else state, str(folder / 'model.safetensors'))
  return str(folder)


def encoder(name):
  options = bert_options(name)
  return BertEncoder(
    dim=8, vocab_size=len(WORDS), **{key: value for key, value in options.items() if key != 'name'}
  )


def test_ids_are_those_of_the_file(tmp_path):
  name = write(tmp_path / 'bert')
  tokenizer = load_wordpiece(name)
  assert tokenizer.encode_batch(['The dogs run.', 'the cat', '[CLS]']) == [
    [THE, DOG, S, RUN, DOT],
    [THE, UNK],
    [UNK, UNK, UNK],
  ]
  assert tokenizer.decode([THE, DOG, S, RUN, DOT, SEP, THE]) == 'the dogs run.'
  tokenizer.save(tmp_path / 'tokenizer.json')
  loaded = Tokenizer.load(tmp_path / 'tokenizer.json')
  assert loaded.encode('dogs') == [DOG, S] and loaded.pieces == WORDS
  assert (loaded.pad_id, loaded.bos_id, loaded.eos_ids, loaded.unk_id) == (PAD, CLS, (SEP,), UNK)
  assert loaded.mask_id == MASK
  table = load_bert(name)['tokens']['embedding']
  theirs = state_of()['embeddings.word_embeddings.weight']
  np.testing.assert_array_equal(table, theirs)


@pytest.mark.parametrize('prefix', ['', 'bert.'])
def test_the_weights_fit_the_encoder(tmp_path, prefix):
  name = write(
    tmp_path / 'bert',
    state=state_of(prefix)
    | {
      'cls.predictions.bias': np.zeros(3, np.float32),
      f'{prefix}pooler.dense.bias': np.zeros(8, np.float32),
    },
  )
  module = encoder(name)
  params = load_bert(name)
  x = np.array([[CLS, THE, DOG, SEP, PAD]])
  mask = np.array([[True] * 4 + [False]])
  wanted = jax.eval_shape(module.init, jax.random.key(0), x, mask)['params']
  assert {key: leaf.shape for key, leaf in flat(wanted).items()} == {
    key: leaf.shape for key, leaf in flat(params).items()
  }
  run = jax.jit(lambda x, mask: module.apply({'params': params}, x, mask).values)
  longer = run(np.pad(x, [(0, 0), (0, 3)], constant_values=7), np.pad(mask, [(0, 0), (0, 3)]))
  np.testing.assert_allclose(run(x, mask)[:, :4], longer[:, :4], atol=1e-5)


@pytest.mark.parametrize(
  'change, says',
  [
    ({'hidden_size': 16}, 'is not the BERT of its config.json; .* variables differ'),
    ({'model_type': 'gpt2'}, "model_type 'gpt2'"),
    ({'words': WORDS[:-1]}, r'embeddings.word_embeddings.weight: \(10, 8\) -> \(9, 8\)'),
    ({'words': [word for word in WORDS if word != '[CLS]']}, r'vocab.txt: no \[CLS\]'),
    (
      {
        'state': {
          key: value for key, value in state_of().items() if 'layer.1.output.dense' not in key
        }
      },
      'encoder.layer.1.output.dense.weight',
    ),
  ],
)
def test_another_bert_is_named(tmp_path, change, says):
  with pytest.raises(UserError, match=says):
    load_bert(write(tmp_path / 'bert', **change))


def test_a_damaged_file_or_a_missing_one_is_named(tmp_path):
  name = write(tmp_path / 'bert')
  path = tmp_path / 'bert' / 'model.safetensors'
  path.write_bytes(path.read_bytes()[:-40])
  with pytest.raises(UserError, match='model.safetensors: cannot be read'):
    load_bert(name)
  path.unlink()
  with pytest.raises(UserError, match='no model.safetensors'):
    load_bert(name)
  with pytest.raises(UserError, match='neither a folder nor an installed package'):
    load_bert('no-such-bert')


def test_a_text_longer_than_its_positions_is_refused(tmp_path):
  said = refused(
    'train',
    'configs/sentiment/bert_sst2.py:smoke',
    '--workdir',
    tmp_path / 'run',
    '--config.data.max_length=17',
  )
  assert 'data.max_length=17: model.encoders.text (bert) has only 16 positions' in said


def test_a_pooler_starts_the_hidden_layer(tmp_path):
  name = write(tmp_path / 'bert', vocab_size=len(WORDS))
  with pytest.raises(UserError, match='has no pooler'):
    load_pooler(name)
  pooler = {
    'pooler.dense.weight': np.arange(64, dtype=np.float32).reshape(8, 8),
    'pooler.dense.bias': np.ones(8, np.float32),
  }
  save_file(state_of() | pooler, str(tmp_path / 'bert' / 'model.safetensors'))
  loaded = load_pooler(name)
  assert (loaded['kernel'] == pooler['pooler.dense.weight'].T).all() and (loaded['bias'] == 1).all()
  mine = write_jsonl(
    tmp_path / 'mine.jsonl',
    [{'id': str(i), 'text': 'the dog', 'label': ['negative', 'positive'][i % 2]} for i in range(8)],
  )
  spec = f'configs/sentiment/manifest.py:train={mine},valid={mine},bert={name}'
  settings = {
    'model.head.pool': 'first',
    'model.head.hidden': '8',
    'model.head.pooler': name,
    'data.max_length': '16',
    'data.buckets': '(16,)',
  }
  experiment = Experiment(configs.override(configs.load_config(spec), settings), tmp_path / 'run')
  loader = experiment.data.loader(str(mine), experiment.data.table(str(mine), True), 8)
  params = experiment.initial_params(loader(0, Batch(np.arange(8), 16, 8)))
  assert (params['head']['hidden']['kernel'] == loaded['kernel']).all()


def test_other_sizes_than_those_of_the_weights_are_refused(tmp_path):
  name = write(tmp_path / 'bert', vocab_size=len(WORDS))
  mine = write_jsonl(
    tmp_path / 'mine.jsonl',
    [{'id': str(i), 'text': 'the dog', 'label': ['negative', 'positive'][i % 2]} for i in range(8)],
  )
  argv = [
    'train',
    f'configs/sentiment/manifest.py:train={mine},valid={mine},bert={name}',
    '--workdir',
    tmp_path / 'run',
    '--config.data.max_length=16',
    '--config.data.buckets=(16,)',
    '--config.train.duration=1 steps',
    '--config.parallel.strategy=jit',
  ]
  said = refused(*argv, '--config.model.encoders.text.layers=3')
  assert (
    f'model.encoders.text: shape mismatch with {name}' in said and 'transformer/block_2' in said
  )


@pytest.mark.parity
def test_hidden_states_are_those_of_transformers(tmp_path, peer):
  torch = peer('torch')
  transformers = peer('transformers')
  name = write(tmp_path / 'bert', vocab_size=len(WORDS))
  x = np.array([[CLS, THE, DOG, S, RUN, DOT, SEP], [CLS, THE, SEP, PAD, PAD, PAD, PAD]])
  mask = x != PAD
  ours = jax.jit(lambda: encoder(name).apply({'params': load_bert(name)}, x, mask).values)()
  model = transformers.BertModel.from_pretrained(name, add_pooling_layer=False).eval()
  with torch.no_grad():
    hidden = model(
      input_ids=torch.tensor(x), attention_mask=torch.tensor(mask).long()
    ).last_hidden_state.numpy()
  np.testing.assert_allclose(ours[mask], hidden[mask], atol=1e-4)
