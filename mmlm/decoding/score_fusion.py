"""Several step functions scored as one: attention with CTC, shallow fusion with language models (Gulcehre et al. 2015, 4.1).

Whatever scores tokens is a step as search.py wants it, (tokens [R], cache) -> (logits or scores [R, V], cache); the sum is another one.

Axes: B examples, K rows an example, R = B * K, V vocabulary.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mmlm.decoding.search import SearchOptions
from mmlm.utils.errors import UserError


@dataclasses.dataclass(frozen=True)
class FusionOptions:
  """What is searched with beside the model itself; UserError when it makes no sense. A weight of 0 leaves a part out."""

  ctc_weight: float = 0.0  # of the CTC branch of a joint head; the decoder has the rest
  language_model: str = ''  # a run folder: a model without encoders and with the same tokenizer
  language_model_weight: float = 0.0
  ngram: int = 0  # order of an n-gram model of the training targets: 2, 3 or 4
  ngram_weight: float = 0.0

  def __post_init__(self):
    for ok, what in (
      (0 <= self.ctc_weight <= 1, f'ctc_weight={self.ctc_weight} must lie in [0, 1]'),
      (
        self.language_model_weight >= 0,
        f'language_model_weight={self.language_model_weight} must be at least 0',
      ),
      (self.ngram_weight >= 0, f'ngram_weight={self.ngram_weight} must be at least 0'),
      (self.ngram in (0, 2, 3, 4), f'ngram={self.ngram} must be 0 (none), 2, 3 or 4'),
      (
        self.language_model or not self.language_model_weight,
        f'language_model_weight={self.language_model_weight} needs language_model, the run folder of one',
      ),
      (
        self.ngram or not self.ngram_weight,
        f'ngram_weight={self.ngram_weight} needs ngram, its order: 2, 3 or 4',
      ),
    ):
      if not ok:
        raise UserError(f'decoding: {what}')


class Part(NamedTuple):
  """A step function and how much its log-probabilities count."""

  weight: float
  step: Callable
  cache: Any
  scored: bool = False  # the step gives log-probabilities as they count, not logits


class Scorer(NamedTuple):
  """A part that stands beside a model: `begin(arrays, examples, options)` -> (step, cache, scored) for R rows."""

  weight: float
  begin: Callable


class Fusion(NamedTuple):
  """What a task searches with beside its model; `arrays[i]` are the tables or parameters of `scorers[i]`."""

  ctc_weight: float = 0.0
  scorers: tuple[Scorer, ...] = ()
  arrays: tuple = ()

  def parts(self, examples: int, options: SearchOptions) -> list[Part]:
    result = []
    for s, arrays in zip(self.scorers, self.arrays):
      result.append(Part(s.weight, *s.begin(arrays, examples, options)))
    return result


ALONE = Fusion()


def combined(parts: list[Part]) -> tuple[Callable, Any, bool]:
  """(step, cache, scored) of all parts together; one of weight 1 alone is given back as it is."""
  parts = [part for part in parts if part.weight]
  if len(parts) == 1 and parts[0].weight == 1:
    return parts[0][1:]
  return (*summed(parts), True)


def summed(parts: list[Part]) -> tuple[Callable, Any]:
  """(step, cache): the weighted sum of log-probabilities; the cache holds those of the parts, whose rows follow as they did."""

  def step(tokens, caches):
    total = 0.0
    new = []
    for part, cache in zip(parts, caches):
      values, cache = part.step(tokens, cache)
      values = values.astype(jnp.float32)
      total += part.weight * (values if part.scored else jax.nn.log_softmax(values))
      new.append(cache)
    return total, tuple(new)

  return step, tuple(part.cache for part in parts)


def each_row(step: Callable, cache, rows: int):
  """A step for one row -> one for R rows that need not be at the same position: every leaf of its cache has R first."""
  cache = jax.tree.map(lambda x: jnp.broadcast_to(x, (rows, *jnp.shape(x))), cache)

  def one(token, cache):
    values, cache = step(token[None], cache)
    return values[0], cache

  return jax.vmap(one), cache
