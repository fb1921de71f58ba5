"""The step of models that touch few rows of large tables: many small updates within one compiled call, each of the rows that it needs.

A gradient of whole tables, as training/step.py has it, would move all of a vocabulary's parameters for every few hundred words.

Axes: M updates of a batch, n rows of an update, D width.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mmlm.training.step import TrainState, where_finite


class RowOptions(NamedTuple):
  model: object  # init, prepare and gradients, as in word_vectors/objectives.py
  rate: Callable  # step -> learning rate
  skip: bool = False  # as in StepOptions

  accumulate = 1  # updates are small: there is nothing to divide


def _sgd(table, _, rows, gradients, rate):
  return table.at[rows].add(-rate * gradients), _


def _adagrad(table, squares, rows, gradients, rate):
  """Duchi et al. 2011, with sums of squares that begin at 1 as in the code of GloVe: each gradient sees those of the updates before."""
  scaled = gradients / jnp.sqrt(squares[rows])
  return table.at[rows].add(-rate * scaled), squares.at[rows].add(gradients**2)


RULES = {'sgd': _sgd, 'adagrad': _adagrad}


def initial_optimizer_state(params: dict, optimizer: str) -> dict:
  result = {}
  for name, table in params.items():
    result[name] = jnp.ones_like(table) if optimizer == 'adagrad' else jnp.zeros(())
  return result


def row_step(state: TrainState, batch: dict, options: RowOptions) -> tuple[TrainState, dict]:
  """The M updates of a batch, one after another, with one learning rate.

  Returns:
    The new state; loss: mean over the pairs of the batch, each at the parameters before its update; gradient norm: the mean over the
    updates, of the gradients of rows as they come; weight: the pairs.
  """
  rate = options.rate(state.step)
  rule = RULES[options.model.optimizer]

  def update(carry, micro):
    params, squares = carry
    found = options.model.gradients(params, micro)
    moved = {
      name: rule(params[name], squares[name], found.rows[name], found.gradients[name], rate)
      for name in params
    }
    norm = jnp.sqrt(sum((gradient**2).sum() for gradient in found.gradients.values()))
    carry = tuple({name: both[i] for name, both in moved.items()} for i in range(2))
    return carry, (found.loss, found.weight, norm)

  (params, squares), (losses, weights, norms) = jax.lax.scan(
    update, (state.params, state.opt_state), options.model.prepare(batch)
  )
  weight = weights.sum().astype(jnp.float32)
  metrics = {
    'loss': losses.sum() / jnp.maximum(weight, 1),
    'gradient_norm': norms.mean(),
    'weight': weight,
  }
  new = state._replace(step=state.step + 1, params=params, opt_state=squares)
  return where_finite(state, new, metrics) if options.skip else new, metrics
