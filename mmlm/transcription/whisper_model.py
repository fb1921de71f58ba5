"""Whisper on windows of 30 seconds: encoder, language, search, and sampling where a result fails.

Axes: B windows, K beams or samples of a window, S frames, M mel bands, P tokens of the prompt.
"""

import functools
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mmlm.data.tokenizers.whisper_tokenizer import TIME_PRECISION
from mmlm.data.transforms.audio import HOP, log_mel_spectrogram
from mmlm.decoding.search import SearchResult, search
from mmlm.decoding.search_options import SearchOptions
from mmlm.decoding.whisper_timestamps import Rules, initial_progress, with_rules
from mmlm.models.attention import Prompt
from mmlm.models.kv_cache import cached_step, new_cache
from mmlm.models.sequence import Sequence
from mmlm.pretrained.whisper import decoder_of, encoder_of, load_whisper
from mmlm.transcription.transcript import DecodingResult
from mmlm.transcription.transcription_options import TranscriptionOptions
from mmlm.utils.errors import UserError

# Tokens of a prompt beside the text before: sot_prev, sot, language, task, no_timestamps.
PROMPT_SPECIALS = 5


class EncodedWindow(NamedTuple):
  """A window after the encoder.

  Attributes:
    memory: keys and values of every layer of the decoder, for this window alone.
    no_speech_prob: probability that nobody speaks.
    language: code of the most likely language.
  """

  memory: dict
  no_speech_prob: float
  language: str


class DecodingBatch(NamedTuple):
  """The prompts of B windows.

  Attributes:
    prompts: [B, P]
    lengths: [B] of the prompts.
    active: [B] whether the window exists, or fills the batch.
    temperature: [B] of the samples.
  """

  prompts: np.ndarray
  lengths: np.ndarray
  active: np.ndarray
  temperature: np.ndarray


class DetectionTokens(NamedTuple):
  """Ids that detect speech and language: each may follow the start."""

  start: int
  no_speech: int
  languages: tuple[int, ...]


class Whisper:
  """A Whisper with options, from a folder or a package (pretrained/whisper.py).

  Raises:
    UserError: no such model, or it has not the language, the task or the length of the options.
  """

  def __init__(self, name: str, options: TranscriptionOptions):
    self.sizes, params, self.tokenizer = load_whisper(name)
    self.params = jax.tree.map(jnp.asarray, params)
    self.options = options
    self.samples = self.sizes.frames * HOP  # of a window
    self.language = ''
    if options.language:
      self.language = self.tokenizer.language_code(options.language)
    self.tokenizer.check_task(options.task)
    self.max_length = self._max_length()
    self._initial_prompt = []
    if options.initial_prompt:
      self._initial_prompt = self.tokenizer.encode(f' {options.initial_prompt.strip()}')
    # Tokens of the text before, which a prompt may have.
    self._context = 0
    if options.condition_on_previous_text or options.initial_prompt:
      self._context = self.sizes.text_length // 2 - PROMPT_SPECIALS
    self._encode, self._decode = self._compiled()

  def _max_length(self) -> int:
    """Returns the maximum number of tokens of a window."""
    limit = self.sizes.text_length // 2
    if self.options.sample_len > limit:
      raise UserError(
        f'sample_len={self.options.sample_len}: this model writes at most {limit} tokens.'
      )
    return self.options.sample_len or limit

  def _compiled(self) -> tuple:
    """Returns `encode_windows` and `decode_windows` of this model, compiled when first called."""
    tokenizer = self.tokenizer
    rules = Rules(
      eot=tokenizer.eot,
      timestamp_begin=tokenizer.timestamp_begin,
      without_timestamps=self.options.without_timestamps,
      max_initial_timestamp_index=round(self.options.max_initial_timestamp / TIME_PRECISION),
      suppress_tokens=(*tokenizer.non_speech_tokens, tokenizer.no_timestamps),
      suppress_at_begin=tokenizer.blank_tokens,
    )
    specials = DetectionTokens(
      start=tokenizer.sot,
      no_speech=tokenizer.no_speech,
      languages=tuple(tokenizer.languages.values()),
    )
    decoder = decoder_of(self.sizes)
    encoder = encoder_of(self.sizes)
    encode = functools.partial(encode_windows, encoder, decoder, specials)
    decode = functools.partial(decode_windows, decoder, rules)
    return jax.jit(encode), jax.jit(decode, static_argnums=0)

  def features(self, samples: np.ndarray) -> np.ndarray:
    """Returns the log-mel spectrogram [S, M] of a window, filled up with silence at its end."""
    samples = samples[: self.samples]
    silence = self.samples - len(samples)
    padded = np.pad(samples, (0, silence))
    return log_mel_spectrogram(padded, self.sizes.mel_bands)

  def encode(self, windows: list[np.ndarray]) -> list[EncodedWindow]:
    """Encodes windows, each the features [S, M]."""
    batch_size = len(windows)
    if jax.default_backend() == 'cpu':
      batch_size = 1  # one window keeps all cores of a CPU busy
    encoded = []
    for first in range(0, len(windows), batch_size):
      batch = windows[first : first + batch_size]
      encoded += self._encode_batch(np.stack(batch))
    return encoded

  def _encode_batch(self, frames: np.ndarray) -> list[EncodedWindow]:
    """Encodes features [B, S, M]."""
    memory, no_speech, language_logits = self._encode(self.params, frames)
    codes = list(self.tokenizer.languages)
    encoded = []
    for i in range(len(frames)):
      language = 'en'
      if codes:
        most_likely = np.argmax(language_logits[i])
        language = codes[most_likely]
      window_memory = memory
      if len(frames) > 1:
        window_memory = _slice(memory, i)
      window = EncodedWindow(window_memory, float(no_speech[i]), language)
      encoded.append(window)
    return encoded

  def prompt(self, language: str, previous: list[int] | None = None) -> list[int]:
    """Returns the prompt of a window.

    Args:
      previous: tokens of the text before the window, of which the last are taken.
    """
    with_times = not self.options.without_timestamps
    start = self.tokenizer.prompt(language, self.options.task, with_times)
    before = [*self._initial_prompt, *(previous or [])]
    if self._context and before:
      return [self.tokenizer.sot_prev, *before[-self._context :], *start]
    return start

  def decode(
    self,
    windows: list[EncodedWindow],
    prompts: list[list[int]],
    batch_size: int,
  ) -> list[DecodingResult]:
    """Decodes each window, again at higher temperatures where the result fails a threshold.

    Args:
      batch_size: number of windows of the compiled program, at least that of `windows`.
    """
    temperature = self.options.temperature[0]
    results = self.decode_at(windows, prompts, batch_size, temperature)
    final = []
    for result, window, prompt in zip(results, windows, prompts):
      result = self._fall_back(result, window, prompt)
      final.append(result)
    return final

  def _fall_back(
    self,
    result: DecodingResult,
    window: EncodedWindow,
    prompt: list[int],
  ) -> DecodingResult:
    """Returns the first result that does not fail, of this and those at higher temperatures.

    If all fail, the last one is returned.
    """
    for temperature in self.options.temperature[1:]:
      if not self._fails(result, window):
        break
      (result,) = self.decode_at([window], [prompt], 1, temperature)
    return result

  def _fails(self, result: DecodingResult, window: EncodedWindow) -> bool:
    """Returns whether a result is repetitive or unlikely, though the window is not silent."""
    options = self.options
    unlikely = result.avg_logprob < options.logprob_threshold
    if unlikely and window.no_speech_prob > options.no_speech_threshold:
      return False
    return unlikely or result.compression_ratio > options.compression_ratio_threshold

  def decode_at(
    self,
    windows: list[EncodedWindow],
    prompts: list[list[int]],
    batch_size: int,
    temperature: float,
  ) -> list[DecodingResult]:
    """Decodes windows at one temperature; 0 = by search."""
    memories = [window.memory for window in windows]
    best = self._decode(
      self._search_options(temperature),
      self.params['decoder'],
      _stack(memories, batch_size),
      self._batch(prompts, batch_size, temperature),
      jax.random.key(self.options.seed),
    )
    best = jax.device_get(best)
    results = []
    for i, window in enumerate(windows):
      length = best.lengths[i, 0]
      tokens = best.tokens[i, 0, :length].tolist()
      log_prob = float(best.log_probs[i, 0])
      result = self._result(tokens, log_prob, window.no_speech_prob, temperature)
      results.append(result)
    return results

  def _batch(
    self,
    prompts: list[list[int]],
    batch_size: int,
    temperature: float,
  ) -> DecodingBatch:
    """Returns the prompts as arrays of one shape for all prompts of these options."""
    longest = len(prompts[0])
    if self._context:
      longest = self._context + PROMPT_SPECIALS
    tokens = np.full((batch_size, longest), self.tokenizer.eot)
    lengths = np.full(batch_size, len(prompts[0]))
    for i, prompt in enumerate(prompts):
      tokens[i, : len(prompt)] = prompt
      lengths[i] = len(prompt)
    return DecodingBatch(
      prompts=tokens,
      lengths=lengths,
      active=np.arange(batch_size) < len(prompts),
      temperature=np.full(batch_size, temperature or 1.0, np.float32),
    )

  def _search_options(self, temperature: float) -> SearchOptions:
    """Returns the options of a search, or of sampling.

    The temperature is not among them: it is an array of the batch, so that another temperature
    does not compile again.
    """
    method = 'greedy'
    beam_size = SearchOptions.beam_size
    samples = 1
    if temperature:
      method = 'sample'
      samples = self.options.best_of
    elif self.options.beam_size > 1:
      method = 'beam'
      beam_size = self.options.beam_size
    return SearchOptions(
      method=method,
      beam_size=beam_size,
      n_best=samples,
      max_length=self.max_length,
      length_penalty=1.0,
      pad_id=self.tokenizer.sot,
      bos_id=self.tokenizer.sot,
      eos_ids=(self.tokenizer.eot,),
    )

  def _result(
    self,
    tokens: list[int],
    log_prob: float,
    no_speech_prob: float,
    temperature: float,
  ) -> DecodingResult:
    """Returns the result of tokens [T] with the sum of their log-probabilities."""
    if tokens[-1] == self.tokenizer.eot:
      tokens = tokens[:-1]
    text = self.tokenizer.decode(tokens).strip()
    data = text.encode()
    compressed = zlib.compress(data)
    return DecodingResult(
      tokens=tuple(tokens),
      text=text,
      avg_logprob=log_prob / (len(tokens) + 1),
      no_speech_prob=no_speech_prob,
      temperature=temperature,
      compression_ratio=len(data) / len(compressed),
    )


def _slice(memory: dict, i: int) -> dict:
  """Returns the memory of window i, as a batch of one."""
  return jax.tree.map(lambda x: x[i : i + 1], memory)


def _stack(memories: list[dict], batch_size: int) -> dict:
  """Returns memories as one batch, filled up with zeros."""
  if batch_size == 1:
    return memories[0]
  zeros = jax.tree.map(jnp.zeros_like, memories[0])
  padding = [zeros] * (batch_size - len(memories))
  return jax.tree.map(lambda *x: jnp.concatenate(x), *memories, *padding)


def encode_windows(
  encoder: nn.Module,
  decoder: nn.Module,
  specials: DetectionTokens,
  params: dict,
  frames: jax.Array,
) -> tuple[Mapping, jax.Array, jax.Array]:
  """Encodes features [B, S, M].

  Returns:
    Keys and values of the layers of the decoder, the probability of no speech [B], and the logits
    of the languages [B, languages].
  """
  memory = encoder.apply({'params': params['encoder']}, frames)
  tokens = jnp.full((len(frames), 1), specials.start)
  logits, made = decoder.apply(
    {'params': params['decoder']},
    tokens,
    memory,
    Prompt(1, 1),
    method='read',
    mutable=['cache', 'memory'],
  )
  no_speech = jax.nn.softmax(logits)[:, specials.no_speech]
  languages = jnp.array(specials.languages, int)
  language_logits = logits[:, languages]
  return made['memory'], no_speech, language_logits


def decode_windows(
  decoder: Any,
  rules: Rules,
  options: SearchOptions,
  params: dict,
  memory: dict,
  batch: DecodingBatch,
  key: jax.Array,
) -> SearchResult:
  """Searches after the prompts, which are read in one step up to the end of the shortest."""
  windows, length = batch.prompts.shape
  width = options.beams
  positions = length - 1 + options.max_length
  start = batch.lengths.min() - 1
  variables = {'params': params, 'memory': memory}
  # The keys and values of the memory are computed already.
  no_values = jnp.zeros((windows, 0, decoder.dim))
  no_memory = Sequence(no_values, None)  # pyright: ignore[reportArgumentType]
  _, made = decoder.apply(
    variables,
    batch.prompts,
    no_memory,
    Prompt(width, positions),
    method='read',
    mutable=['cache'],
  )
  inner = new_cache(made['cache'], windows, width, positions, start)
  remaining = batch.lengths - start
  rest = jnp.take(batch.prompts, start + jnp.arange(length), axis=1, mode='clip')
  progress = initial_progress(jnp.repeat(remaining, width), rules)
  cache = {'progress': progress, 'inner': inner}
  step = with_rules(cached_step(decoder, variables, no_memory, windows, width), rules)
  return search(
    step,
    cache,
    options,
    rest,
    key,
    remaining,
    jnp.asarray(batch.active),
    temperature=jnp.asarray(batch.temperature),
  )
