"""Fusion of scores: attention with CTC, language models (shallow fusion, Gulcehre et al. 2015,
4.1).

What scores tokens is a step as search.py takes it, (tokens [R], cache) -> (logits or scores [R, V],
cache). Their weighted sum is such a step, too.

Axes: B examples, K beams of an example, R = B * K, V vocabulary.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from mmlm.decoding.search import Cache, Step
from mmlm.decoding.search_options import SearchOptions
from mmlm.utils.errors import UserError

NGRAM_ORDERS = (0, 2, 3, 4)


@dataclasses.dataclass(frozen=True)
class FusionOptions:
  """Scores that are added to those of the model; a weight of 0 leaves one out.

  Raises:
    UserError: values out of range, or a weight without what it weighs.
  """

  ctc_weight: float = 0.0  # of the CTC branch of a joint head; the decoder has the rest
  language_model: str = ''  # run folder of a model without encoders and with the same tokenizer
  language_model_weight: float = 0.0
  ngram: int = 0  # order of an n-gram model of the training targets: 2, 3 or 4; 0 is none
  ngram_weight: float = 0.0

  def __post_init__(self) -> None:
    for problem in self._problems():
      raise UserError(f'decoding: {problem}')

  def _problems(self) -> Iterator[str]:
    if not 0 <= self.ctc_weight <= 1:
      yield f'ctc_weight={self.ctc_weight} must lie in [0, 1]'
    for name in ('language_model_weight', 'ngram_weight'):
      if getattr(self, name) < 0:
        yield f'{name}={getattr(self, name)} must be at least 0'
    if self.ngram not in NGRAM_ORDERS:
      yield f'ngram={self.ngram} must be 0 (none), 2, 3 or 4'
    if self.language_model_weight and not self.language_model:
      yield (
        f'language_model_weight={self.language_model_weight} needs language_model, '
        'the run folder of one'
      )
    if self.ngram_weight and not self.ngram:
      yield f'ngram_weight={self.ngram_weight} needs ngram, its order: 2, 3 or 4'


class WeightedStep(NamedTuple):
  """A step function and the weight of its log-probabilities."""

  weight: float
  step: Step
  cache: Cache
  scored: bool = False  # the step gives scores that are added as they are, not logits


class Scorer(NamedTuple):
  """Scores that are added to those of the model."""

  weight: float
  # (arrays, examples, options) -> (step, cache, scored) for R = examples * options.beams beams
  begin: Callable[[Any, int, SearchOptions], tuple[Step, Cache, bool]]


class Fusion(NamedTuple):
  """All that a task adds to the scores of its model."""

  ctc_weight: float = 0.0
  scorers: tuple[Scorer, ...] = ()
  arrays: tuple = ()  # the tables or parameters of each scorer

  def steps(
    self,
    examples: int,
    options: SearchOptions,
  ) -> list[WeightedStep]:
    """Returns the step of each scorer, at its beginning."""
    steps = []
    for scorer, arrays in zip(self.scorers, self.arrays):
      begun = scorer.begin(arrays, examples, options)
      steps.append(WeightedStep(scorer.weight, *begun))
    return steps


NO_FUSION = Fusion()


def combine(steps: list[WeightedStep]) -> tuple[Step, Cache, bool]:
  """Returns (step, cache, scored) of the weighted sum; a single step of weight 1 as it is."""
  steps = [step for step in steps if step.weight]
  if len(steps) == 1 and steps[0].weight == 1:
    (only,) = steps
    return only.step, only.cache, only.scored
  step, cache = weighted_sum(steps)
  return step, cache, True


def weighted_sum(steps: list[WeightedStep]) -> tuple[Step, tuple]:
  """Returns (step, cache) of the weighted sum of log-probabilities; the cache holds all caches."""

  def step(tokens: Array, caches: tuple) -> tuple[Array, tuple]:
    total: Any = 0.0
    new_caches = []
    for part, cache in zip(steps, caches):
      values, cache = part.step(tokens, cache)
      values = values.astype(jnp.float32)
      log_probs = values if part.scored else jax.nn.log_softmax(values)
      total += part.weight * log_probs
      new_caches.append(cache)
    return total, tuple(new_caches)

  return step, tuple(part.cache for part in steps)


def for_each_beam(
  step: Step,
  cache: Cache,
  beams: int,
) -> tuple[Step, Cache]:
  """Makes a step for one beam a step for R beams, which need not be at the same position.

  Every leaf of the new cache has R as its first axis.
  """
  cache = jax.tree.map(
    lambda x: jnp.broadcast_to(x, (beams, *jnp.shape(x))),
    cache,
  )

  def step_of_one(token: Array, cache: Cache) -> tuple[Array, Cache]:
    values, cache = step(token[None], cache)
    return values[0], cache

  return jax.vmap(step_of_one), cache
