"""Text generation with a trained language model.

Axes: C tokens of the context, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mmlm.data.tokenizers.tokenizer import Tokenizer
from mmlm.decoding.next_tokens import draw
from mmlm.decoding.search_options import SearchOptions
from mmlm.experiment.experiment import Experiment
from mmlm.models.multimodal import MultimodalModel
from mmlm.tasks.text_generation import begin_decoder
from mmlm.utils.errors import UserError

UNLIMITED = 1 << 30  # tokens; the caller of the generator sets the limit
# Tokens before a new one whose text decides whether a space separates them.
OVERLAP = 4
# A character of UTF-8 has at most so many bytes, so at most so many tokens.
LONGEST_CHARACTER = 4


class TokenGenerator:
  """Generates texts of any length token by token.

  A decoder whose context is full reads the last half of it again and continues from there. A model
  that carries a state needs no context.

  Args:
    model: a language model.
    params: its parameters.
    context: C, tokens that the decoder can attend to.
    options: how to choose a token (`max_length` is not used).
  """

  def __init__(
    self,
    model: MultimodalModel,
    params: Any,
    context: int,
    options: SearchOptions,
  ):
    self.context = context
    self.options = options
    self.carries_state = model.head.carries_state
    self._params = params
    greedy = SearchOptions('greedy', max_length=context)

    def begin(params: Any) -> Any:
      _, cache, _ = begin_decoder(model, params, None, 1, greedy)
      return cache

    def step(params: Any, cache: Any, token: Array) -> tuple:
      decode, _, _ = begin_decoder(model, params, None, 1, greedy)
      return decode(token[None], cache)

    def read(params: Any, cache: Any, tokens: Array, count: Array) -> Any:
      def read_one(i: Array, cache: Any) -> Any:
        _, cache = step(params, cache, tokens[i])
        return cache

      return jax.lax.fori_loop(0, count, read_one, cache)

    def write(
      params: Any,
      cache: Any,
      token: Array,
      length: Array,
      key: Array,
    ) -> tuple:
      logits, cache = step(params, cache, token)  # [1, V]
      keys = None if options.method == 'greedy' else key[None]
      tokens, *_ = draw(
        logits.astype(jnp.float32),
        length[None],
        options,
        keys,
        options.temperature,
      )
      return tokens[0], cache

    self._begin = jax.jit(begin)
    self._read = jax.jit(read)
    self._write = jax.jit(write, donate_argnums=1)

  def __call__(self, prompt: list[int], key: Array, limit: int) -> Iterator[int]:
    """Yields the tokens that follow a prompt of at least one token, without the end token.

    Args:
      key: of the random numbers.
      limit: tokens after which the text ends, if no end token comes before.
    """
    limited = not self.carries_state
    half = max(1, self.context // 2)
    tokens = list(prompt)
    context = tokens
    if limited and len(tokens) > self.context:
      context = tokens[-half:]
    cache, used = self._read_prompt(context)
    for number in range(limit):
      if limited and used == self.context:
        context = tokens[-half:]
        cache, used = self._read_prompt(context)
      written, cache = self._write(
        self._params,
        cache,
        np.int32(tokens[-1]),
        np.int32(number),
        key,
      )
      token = int(written)
      used += 1
      if token in self.options.eos_ids:
        return
      tokens.append(token)
      yield token

  def _read_prompt(self, tokens: list[int]) -> tuple[Any, int]:
    """Returns the cache after all tokens but the last, and the number of these."""
    cache = self._begin(self._params)
    previous = tokens[:-1]
    size = self.context
    for start in range(0, len(previous), size):
      part = previous[start : start + size]
      count = len(part)
      padded = np.zeros(size, np.int32)
      padded[:count] = part
      cache = self._read(self._params, cache, padded, count)
    return cache, len(previous)


class StreamedText:
  """Decodes tokens one by one to the text that each adds.

  Bytes that are no complete character yet are held back until it is complete.

  Args:
    prompt: tokens that precede the text.
  """

  def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int]):
    self.tokenizer = tokenizer
    self._previous = list(prompt)[-OVERLAP:]
    self._waiting: list[int] = []

  def __call__(self, token: int) -> str:
    """Returns the text that a token adds, '' if its character is not complete."""
    self._waiting.append(token)
    # Whether a space separates two tokens shows only in the text of both.
    sequences = [self._previous, self._previous + self._waiting]
    before, after = self.tokenizer.decode_batch(sequences)
    added = after[len(before) :]
    is_incomplete = after.endswith('\N{REPLACEMENT CHARACTER}')
    if is_incomplete and len(self._waiting) < LONGEST_CHARACTER:
      return ''
    shown = self._previous + self._waiting
    self._previous = shown[-OVERLAP:]
    self._waiting = []
    return added


def search_options(
  experiment: Experiment,
  temperature: float,
  top_k: int,
  top_p: float,
) -> SearchOptions:
  """Returns how to choose the tokens of a text; temperature 0 takes the most likely ones.

  Raises:
    UserError: options of sampling with temperature 0.
  """
  sampling: dict[str, Any] = {'method': 'greedy'}
  if temperature:
    sampling = {
      'method': 'sample',
      'temperature': temperature,
      'top_k': top_k,
      'top_p': top_p,
    }
  elif (top_k, top_p) != (0, 1.0):
    raise UserError(
      '--temperature=0 always takes the most likely token: --top_k and --top_p have no effect.'
    )
  special = experiment.data.special_tokens
  # A model that has not learned where texts end is stopped by --max_length alone.
  learned_ends = experiment.config.data.ends
  return SearchOptions(
    **sampling,
    max_length=UNLIMITED,
    min_length=0 if learned_ends else UNLIMITED,
    pad_id=special.pad_id,
    bos_id=special.bos_id,
    eos_ids=special.eos_ids,
  )


def encode_prompt(experiment: Experiment, prompt: str) -> list[int]:
  """Returns the tokens of a prompt after the start token; prints its unknown characters."""
  tokenizer = experiment.data.tokenizer
  assert tokenizer is not None
  tokens = tokenizer.encode(prompt)
  if tokenizer.unk_id in tokens:
    unknown = set()
    for char in prompt:
      if tokenizer.unk_id in tokenizer.encode(char):
        unknown.add(char)
    shown = sorted(unknown) or [prompt]
    listed = ' '.join(map(repr, shown))
    print(f'(not in the vocabulary and read as unknown: {listed})')
  return [tokenizer.bos_id, *tokens]
