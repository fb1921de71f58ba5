"""A Whisper that answers for windows of 30 seconds: encoder, language, search, and other temperatures where the answer is bad.

Axes: B windows, K rows a window, S frames, M mel bands, P tokens of the prompt, V vocabulary.
"""

import functools
import zlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mmlm.data.tokenizers.whisper_tokenizer import TICK
from mmlm.data.transforms.audio import HOP, log_mel_spectrogram
from mmlm.decoding.search import SearchOptions, rows, search
from mmlm.decoding.whisper_timestamps import Rules, nothing_said, ruled
from mmlm.models.attention import Prompt
from mmlm.models.kv_cache import cache_of, cached_step
from mmlm.models.sequence import Sequence
from mmlm.pretrained.whisper import decoder_of, encoder_of, load_whisper
from mmlm.transcription.transcription_options import Answer, Options
from mmlm.utils.errors import UserError


class Heard(NamedTuple):
  """A window after the encoder."""

  memory: dict  # keys and values of every layer of the decoder, for one window
  no_speech: float  # the probability that nobody speaks
  language: str  # the likeliest


class Asked(NamedTuple):
  """What is to be answered for B windows."""

  prompt: np.ndarray  # [B, P]
  lengths: np.ndarray  # [B] of the prompts
  active: np.ndarray  # [B] whether there is such a window
  temperature: np.ndarray  # [B] of draws


class Whisper:
  """`name`: a folder or a package (pretrained/whisper.py)."""

  def __init__(self, name: str, options: Options):
    self.sizes, params, self.tokenizer = load_whisper(name)
    self.params = jax.tree.map(jnp.asarray, params)
    self.options = options
    self.samples = self.sizes.frames * HOP  # of a window
    if options.language:
      self.language = self.tokenizer.language(options.language)
    else:
      self.language = ''
    self.tokenizer.check_task(options.task)
    longest = self.sizes.text_length // 2
    if options.max_tokens > longest:
      raise UserError(f'max_tokens={options.max_tokens}: this model writes {longest} at most.')
    self.max_tokens = options.max_tokens or longest
    # Tokens of what was said before; its start, four of the prompt's own and the answer follow.
    if options.previous or options.prompt:
      self.context = longest - 5
    else:
      self.context = 0
    rules = Rules(
      self.tokenizer.end,
      self.tokenizer.first_time,
      options.times,
      round(options.max_first_time / TICK),
      (*self.tokenizer.not_speech, self.tokenizer.no_times),
      self.tokenizer.not_first,
    )
    encoder = encoder_of(self.sizes)
    decoder = decoder_of(self.sizes)
    starts = (
      self.tokenizer.start,
      self.tokenizer.no_speech,
      tuple(self.tokenizer.languages.values()),
    )
    self._encode = jax.jit(functools.partial(encode, encoder, decoder, starts))
    self._decode = jax.jit(functools.partial(decode, decoder, rules), static_argnums=0)

  def features(self, samples: np.ndarray) -> np.ndarray:
    """Samples of a window -> [S, M], filled up with silence; the loudest of all sets the floor."""
    padded = np.pad(
      samples[: self.samples],
      (0, max(0, self.samples - len(samples))),
    )
    return log_mel_spectrogram(padded, self.sizes.mel_bands)

  def hear(self, windows: list[np.ndarray]) -> list[Heard]:
    """Features [S, M] of each window -> what the decoder reads of it."""
    # one window has work enough for all cores of a CPU
    if jax.default_backend() == 'cpu':
      together = 1
    else:
      together = len(windows)
    found = []
    for i in range(0, len(windows), together):
      memory, no_speech, languages = self._encode(self.params, np.stack(windows[i : i + together]))
      if self.tokenizer.languages:
        likeliest = np.argmax(languages, -1)
      else:
        likeliest = []
      names = [list(self.tokenizer.languages)[j] for j in likeliest] or ['en'] * len(no_speech)
      for j, name in enumerate(names):
        if together > 1:
          own = jax.tree.map(lambda x: x[j : j + 1], memory)  # noqa: B023
        else:
          own = memory
        found.append(Heard(own, float(no_speech[j]), name))
    return found

  def prompt(self, language: str, before: list[int] = ()) -> list[int]:
    """The prompt of a window, with the end of what was said before it."""
    start = self.tokenizer.prompt(language, self.options.task, self.options.times)
    if self.context and before:
      return [self.tokenizer.previous, *before[-self.context :], *start]
    return start

  def answer(self, heard: list[Heard], prompts: list[list[int]], size: int) -> list[Answer]:
    """The answer for each window; what is compiled is for `size` windows."""
    result = []
    for given in zip(
      self.answer_at(heard, prompts, size, self.options.temperatures[0]), heard, prompts
    ):
      result.append(self._better(*given))
    return result

  def _better(self, answer: Answer, heard: Heard, prompt: list[int]) -> Answer:
    """The first answer that is not bad, of this one and those at higher temperatures; else the last."""
    for temperature in self.options.temperatures[1:]:
      silent = (
        heard.no_speech > self.options.max_no_speech
        and answer.avg_logprob < self.options.min_log_prob
      )
      good = (
        answer.compression_ratio <= self.options.max_compression_ratio
        and answer.avg_logprob >= self.options.min_log_prob
      )
      if silent or good:
        break
      (answer,) = self.answer_at([heard], [prompt], 1, temperature)
    return answer

  def answer_at(
    self, heard: list[Heard], prompts: list[list[int]], size: int, temperature: float
  ) -> list[Answer]:
    """Answers at one temperature."""
    # [P]: one shape for every prompt
    if self.context:
      length = self.context + 5
    else:
      length = len(prompts[0])
    lengths = np.array(
      [len(prompt) for prompt in prompts] + [len(prompts[0])] * (size - len(prompts))
    )
    tokens = np.full((size, length), self.tokenizer.end)
    for row, prompt in zip(tokens, prompts):
      row[: len(prompt)] = prompt
    memories = [one.memory for one in heard]
    memories += [jax.tree.map(jnp.zeros_like, memories[0])] * (size - len(heard))
    if size == 1:
      memory = memories[0]
    else:
      memory = jax.tree.map(lambda *x: jnp.concatenate(x), *memories)
    asked = Asked(
      tokens, lengths, np.arange(size) < len(heard), np.full(size, temperature or 1.0, np.float32)
    )
    key = jax.random.key(self.options.seed)
    found = jax.device_get(
      self._decode(self._options(temperature), self.params['decoder'], memory, asked, key)
    )
    result = []
    for i, one in enumerate(heard):
      result.append(
        self._read(
          found.tokens[i, 0][: found.lengths[i, 0]].tolist(),
          float(found.log_probs[i, 0]),
          one.no_speech,
          temperature,
        )
      )
    return result

  def _options(self, temperature: float) -> SearchOptions:
    """The search at a temperature; that of a draw is given beside, so that another one does not compile again."""
    if temperature:
      method = 'sample'
    elif self.options.beam_size > 1:
      method = 'beam'
    else:
      method = 'greedy'
    number = {
      'sample': {'n_best': self.options.best_of},
      'beam': {'beam_size': self.options.beam_size},
    }.get(method, {})
    start = self.tokenizer.start
    end = self.tokenizer.end
    return SearchOptions(
      method,
      self.max_tokens,
      length_penalty=1.0,
      pad_id=start,
      bos_id=start,
      eos_ids=(end,),
      **number,
    )

  def _read(
    self, tokens: list[int], log_prob: float, no_speech: float, temperature: float
  ) -> Answer:
    if tokens[-1] == self.tokenizer.end:
      tokens = tokens[:-1]
    else:
      tokens = tokens
    text = self.tokenizer.decode(tokens).strip()
    data = text.encode()
    return Answer(
      tuple(tokens),
      text,
      log_prob / (len(tokens) + 1),
      no_speech,
      temperature,
      len(data) / len(zlib.compress(data)),
    )


def encode(encoder, decoder, starts: tuple, params: dict, frames):
  """[B, S, M] -> keys and values of the decoder's layers, the probability of no speech [B], logits of the languages [B, languages].

  `starts`: the ids of the start, of no speech, and of the languages, which are what may follow the start.
  """
  start, no_speech, languages = starts
  memory = encoder.apply({'params': params['encoder']}, frames)
  tokens = jnp.full((len(frames), 1), start)
  logits, made = decoder.apply(
    {'params': params['decoder']},
    tokens,
    memory,
    Prompt(1, 1),
    method='read',
    mutable=['cache', 'memory'],
  )
  return (
    made['memory'],
    jax.nn.softmax(logits)[:, no_speech],
    logits[
      :,
      jnp.array(
        languages,
        int,
      ),
    ],
  )


def decode(
  decoder, rules: Rules, options: SearchOptions, params: dict, memory: dict, asked: Asked, key
):
  """Searches after the prompts -> SearchResult. They are read at once, up to the end of the shortest."""
  examples, length, width = *asked.prompt.shape, rows(options)
  positions = length - 1 + options.max_length
  start = asked.lengths.min() - 1
  variables = {'params': params, 'memory': memory}
  nothing = Sequence(jnp.zeros((examples, 0, decoder.dim)), None)  # its keys and values are known
  _, made = decoder.apply(
    variables, asked.prompt, nothing, Prompt(width, positions), method='read', mutable=['cache']
  )
  inner = cache_of(made['cache'], examples, width, positions, start)
  left = asked.lengths - start
  rest = jnp.take(asked.prompt, start + jnp.arange(length), axis=1, mode='clip')
  cache = {'said': nothing_said(jnp.repeat(left, width), rules), 'inner': inner}
  step = ruled(cached_step(decoder, variables, nothing, examples, width), rules)
  return search(step, cache, options, rest, key, left, asked.active, temperature=asked.temperature)
