"""Whisper on windows: the cached search is the uncached one, samples, and the fallback."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from whispers import END, FRAMES, write_hugging_face

from mmlm.decoding.whisper_timestamps import Rules, apply_rules, initial_progress, update
from mmlm.pretrained.whisper import decoder_of, encoder_of
from mmlm.transcription.transcript import DecodingResult
from mmlm.transcription.transcription_options import TranscriptionOptions
from mmlm.transcription.whisper_model import EncodedWindow, Whisper

LENGTH = 12  # tokens of a window at most


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return write_hugging_face(tmp_path_factory.mktemp('whisper') / 'hf')


@pytest.fixture(scope='module')
def whisper(folder):
  """(options) -> a model with these options; each is made once."""
  models = {}

  def make(**options):
    key = tuple(options.items())
    if key not in models:
      options = TranscriptionOptions(language='en', sample_len=LENGTH, **options)
      models[key] = Whisper(folder, options)
    return models[key]

  return make


def rules_of(model):
  tokenizer = model.tokenizer
  return Rules(
    eot=tokenizer.eot,
    timestamp_begin=tokenizer.timestamp_begin,
    without_timestamps=model.options.without_timestamps,
    max_initial_timestamp_index=50,
    suppress_tokens=(*tokenizer.non_speech_tokens, tokenizer.no_timestamps),
    suppress_at_begin=tokenizer.blank_tokens,
  )


class Uncached:
  """Computes log-probabilities of whole sequences without a cache, under the rules of a model."""

  def __init__(self, model):
    self.params = model.params
    self.rules = rules_of(model)
    self.encode = jax.jit(encoder_of(model.sizes).apply)
    self.decode = jax.jit(decoder_of(model.sizes).apply)
    self.step = jax.jit(self._step)

  def _step(self, progress, token, logits):
    progress = update(progress, token, self.rules)
    return progress, jax.nn.log_softmax(apply_rules(logits, progress, self.rules))[0]

  def __call__(self, frames, prompt, tokens):
    """Returns the log-probabilities [T + 1, V] of the tokens after a prompt, and of the end."""
    memory = self.encode({'params': self.params['encoder']}, frames[None])
    inputs = np.array([[*prompt, *tokens]])
    padded = np.pad(inputs, [(0, 0), (0, 24 - inputs.size)])
    logits = self.decode({'params': self.params['decoder']}, padded, memory)[0]
    progress = initial_progress(jnp.ones(1, int), self.rules)
    log_probs = []
    for position in range(len(prompt) - 1, inputs.size):
      token = jnp.array([inputs[0, position]])
      progress, of_position = self.step(progress, token, logits[position : position + 1])
      log_probs.append(np.array(of_position))
    return np.stack(log_probs)


def assert_log_prob(result, log_probs):
  """Checks the mean log-probability of a result; a result that was cut has no end token."""
  tokens = [*result.tokens, END]
  count = min(len(tokens), LENGTH)
  total = sum(log_probs[i, tokens[i]] for i in range(count))
  assert result.avg_logprob == pytest.approx(total / len(tokens), abs=1e-4)


@pytest.mark.parametrize('without_timestamps, beam_size', [(False, 1), (True, 3)])
def test_the_cached_search_of_a_batch_is_the_uncached_one(whisper, without_timestamps, beam_size):
  model = whisper(
    without_timestamps=without_timestamps, beam_size=beam_size, condition_on_previous_text=True
  )
  uncached = Uncached(model)
  texts_before = ([], [5, 6, 7], list(range(20, 40)))
  prompts = [model.prompt('en', before) for before in texts_before]  # of three lengths
  frames = [FRAMES[0], FRAMES[1], FRAMES[0]]
  windows = model.encode(frames)
  results = model.decode_at(windows, prompts, 4, 0.0)
  assert len({result.tokens for result in results}) == 3
  for result, window, prompt, features in zip(results, windows, prompts, frames):
    (alone,) = model.decode_at([window], [prompt], 1, 0.0)
    assert alone.tokens == result.tokens
    log_probs = uncached(features, prompt, result.tokens)
    assert_log_prob(result, log_probs)
    if beam_size == 1:
      most_likely = log_probs.argmax(1)[:LENGTH].tolist()
      assert most_likely == [*result.tokens, END][:LENGTH]


def test_samples_follow_the_temperature_and_the_seed(whisper):
  model = whisper(beam_size=1, condition_on_previous_text=True)
  uncached = Uncached(model)
  windows = model.encode([FRAMES[0]])
  prompt = model.prompt('en')

  def decode(temperature):
    (result,) = model.decode_at(windows, [prompt], 1, temperature)
    return result

  greedy = decode(0.0)
  assert decode(0.001).tokens == greedy.tokens
  sampled = decode(1.0)
  assert sampled.temperature == 1
  assert sampled.tokens == decode(1.0).tokens != greedy.tokens
  for temperature in (0.5, 1.0, 2.0):  # the most likely of five samples may be any of them
    result = decode(temperature)
    assert_log_prob(result, uncached(FRAMES[0], prompt, result.tokens))


# Fallback

UNLIKELY = DecodingResult((5,), '', -3.0, 0.1, 0.0, 1.0)
REPETITIVE = DecodingResult((5,), '', -0.1, 0.1, 0.0, 9.0)
GOOD = DecodingResult((5,), '', -0.1, 0.1, 0.0, 1.0)


@pytest.mark.parametrize(
  'first, log_probs, no_speech_prob, tried',
  [
    (GOOD, [], 0.1, []),
    (UNLIKELY, [-2.0, -0.5], 0.1, [0.2, 0.4]),
    (UNLIKELY, [-2.0] * 5, 0.1, [0.2, 0.4, 0.6, 0.8, 1.0]),  # the last, where all fail
    (REPETITIVE, [-0.5], 0.1, [0.2]),
    (UNLIKELY, [], 0.7, []),  # nobody speaks: no wonder
  ],
)
def test_a_result_that_fails_is_sampled_at_higher_temperatures(
  whisper, monkeypatch, first, log_probs, no_speech_prob, tried
):
  model = whisper()
  temperatures = []

  def decode_at(windows, prompts, batch_size, temperature):
    if temperature == 0:
      return [first]
    log_prob = log_probs[len(temperatures)]
    temperatures.append(temperature)
    return [dataclasses.replace(GOOD, avg_logprob=log_prob, temperature=temperature)]

  monkeypatch.setattr(model, 'decode_at', decode_at)
  (result,) = model.decode([EncodedWindow({}, no_speech_prob, 'en')], [[]], 1)
  assert temperatures == tried
  assert result.temperature == (tried[-1] if tried else 0.0)
