"""A trained language model: scores running text and writes text.

Axes: C tokens that the model reads at once, V vocabulary.
"""

import jax
import jax.numpy as jnp
import numpy as np

from mmlm.decoding.search import SearchOptions, draw
from mmlm.experiment.experiment import Experiment
from mmlm.tasks.text_generation import begin_decoder
from mmlm.utils.errors import UserError


class Writer:
  """Writes token by token, of any length: a decoder whose context is full reads the last half of it again and goes on from there. A model
  that carries a state needs no context.

  Args:
    options: how to draw (`max_length` is not used).
  """

  def __init__(self, model, params, context: int, options: SearchOptions):
    self.context = context
    self.options = options
    self.endless = model.head.carries_state
    alone = SearchOptions('greedy', max_length=context)
    self._begin = jax.jit(lambda params: begin_decoder(model, params, None, 1, alone)[1])
    self._params = params

    def step(params, cache, token):
      return begin_decoder(model, params, None, 1, alone)[0](token[None], cache)

    def read(params, cache, tokens, count):
      return jax.lax.fori_loop(0, count, lambda i, cache: step(params, cache, tokens[i])[1], cache)

    def write(params, cache, token, length, key):
      logits, cache = step(params, cache, token)
      if self.options.method == 'greedy':
        keys = None
      else:
        keys = key[None]
      return draw(
        logits.astype(jnp.float32), length[None], self.options, keys, self.options.temperature
      )[0][0], cache

    self._read = jax.jit(read)
    self._write = jax.jit(write, donate_argnums=1)

  def __call__(self, prompt: list[int], key, limit: int):
    """Yields tokens behind the prompt (at least one token), `limit` of them or until the end token, which is not among them."""
    said = list(prompt)
    cache, used = self._behind(
      said if self.endless or len(said) <= self.context else said[-self._half :]
    )
    for number in range(limit):
      if used == self.context and not self.endless:
        cache, used = self._behind(said[-self._half :])
      token, cache = self._write(
        self._params,
        cache,
        np.int32(said[-1]),
        np.int32(number),
        key,
      )
      used += 1
      if int(token) in self.options.eos_ids:
        return
      said.append(int(token))
      yield int(token)

  @property
  def _half(self) -> int:
    return max(1, self.context // 2)

  def _behind(self, tokens: list[int]):
    """The cache in which all tokens but the last stand, and how many these are."""
    cache = self._begin(self._params)
    known = tokens[:-1]
    for start in range(0, len(known), self.context):
      part = known[start : start + self.context]
      cache = self._read(
        self._params,
        cache,
        np.pad(np.array(part, np.int32), (0, self.context - len(part))),
        len(part),
      )
    return cache, len(known)


class Spelling:
  """Text of tokens as they come: what each adds, held back while the bytes are no whole character."""

  def __init__(self, tokenizer, before: list[int]):
    self.tokenizer = tokenizer
    self.told = list(before)
    self.waiting = []

  def __call__(self, token: int) -> str:
    self.waiting.append(token)
    decode = self.tokenizer.decode_batch
    # A few tokens before tell whether a space stands between: their text is a prefix of both.
    old, new = decode(
      [
        self.told[-4:],
        self.told[-4:] + self.waiting,
      ]
    )
    if new.endswith('\N{REPLACEMENT CHARACTER}') and len(self.waiting) < 4:
      return ''
    self.told = (self.told + self.waiting)[-4:]
    self.waiting = []
    return new[len(old) :]


def search_options(
  experiment: Experiment, temperature: float, top_k: int, top_p: float
) -> SearchOptions:
  if temperature:
    drawn = {'method': 'sample', 'temperature': temperature, 'top_k': top_k, 'top_p': top_p}
  else:
    drawn = {'method': 'greedy'}
  if not temperature and (top_k, top_p) != (0, 1.0):
    raise UserError(
      '--temperature=0 always takes the likeliest token: --top_k and --top_p do nothing with it.'
    )
  # A text whose ends were never learned has none: it is cut by --max_length alone.
  endless = not experiment.config.data.ends
  most = 1 << 30
  tokenizer = experiment.data.tokenizer
  return SearchOptions(
    **drawn,
    max_length=most,
    min_length=most if endless else 0,
    pad_id=tokenizer.pad_id,
    bos_id=tokenizer.bos_id,
    eos_ids=tokenizer.eos_ids,
  )


def encode_prompt(experiment: Experiment, prompt: str) -> list[int]:
  """What the model reads first: the start, where documents have one, and the prompt."""
  tokenizer = experiment.data.tokenizer
  tokens = tokenizer.encode(prompt)
  unk_id = tokenizer.unk_id
  if unk_id in tokens:
    strange = sorted(
      {character for character in prompt if unk_id in tokenizer.encode(character)}
    ) or [prompt]
    print(f'(not in the vocabulary and read as unknown: {" ".join(map(repr, strange))})')
  return [tokenizer.bos_id, *tokens]
