"""The train step of models that touch few rows of large tables.

One compiled call makes many small updates, each of the rows that it needs. A gradient of whole
tables, as training/step.py has it, would move all of a vocabulary's parameters for every few
hundred words.

Axes: M updates of a batch, n rows of an update, D width.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from mmlm.training.step import TrainState, where_finite
from mmlm.word_vectors.objectives import Objective

Tables = dict[str, Array]
Updated = tuple[Array, Array]  # a table and its sums of squares


class RowOptions(NamedTuple):
  """What the step needs besides the state and a batch."""

  model: Objective
  rate: Callable  # step -> learning rate
  skip: bool = False  # leave the state as it is after an update that is not finite

  accumulate = 1  # updates are small: there is nothing to divide


def _sgd(
  table: Array,
  squares: Array,
  rows: Array,
  gradients: Array,
  rate: Array,
) -> Updated:
  return table.at[rows].add(-rate * gradients), squares


def _adagrad(
  table: Array,
  squares: Array,
  rows: Array,
  gradients: Array,
  rate: Array,
) -> Updated:
  """AdaGrad (Duchi et al. 2011); each gradient is scaled by the squares of the updates before it.

  The sums of squares begin at 1, as in the code of GloVe's authors.
  """
  scaled = gradients / jnp.sqrt(squares[rows])
  return table.at[rows].add(-rate * scaled), squares.at[rows].add(gradients**2)


# (table, sums of squares, rows [n], gradients [n, D], learning rate) -> both updated
RULES: dict[str, Callable] = {'sgd': _sgd, 'adagrad': _adagrad}


def initial_optimizer_state(params: Tables, optimizer: str) -> Tables:
  """Returns the sums of squares of AdaGrad; SGD has none, a 0 stands for them."""
  squares = {}
  for name, table in params.items():
    if optimizer == 'adagrad':
      squares[name] = jnp.ones_like(table)
    else:
      squares[name] = jnp.zeros(())
  return squares


def row_step(
  state: TrainState,
  batch: Tables,
  options: RowOptions,
) -> tuple[TrainState, dict[str, Array]]:
  """Makes the M updates of a batch, one after another, with one learning rate.

  Returns:
    The new state, and metrics: loss, the mean over the pairs of the batch, each at the parameters
    before its update; gradient_norm, the mean over the updates, of the gradients of rows before
    equal rows are summed; weight, the number of pairs.
  """
  rate = options.rate(state.step)
  rule = RULES[options.model.optimizer]

  def update(carry: tuple[Tables, Tables], micro_batch: Tables):
    params, squares = carry
    found = options.model.gradients(params, micro_batch)
    new_params = {}
    new_squares = {}
    for name in params:
      new_params[name], new_squares[name] = rule(
        params[name], squares[name], found.rows[name], found.gradients[name], rate
      )
    norm = jnp.sqrt(sum((gradient**2).sum() for gradient in found.gradients.values()))
    return (new_params, new_squares), (found.loss, found.weight, norm)

  (params, squares), (losses, weights, norms) = jax.lax.scan(
    update, (state.params, state.opt_state), options.model.prepare(batch)
  )
  weight = weights.sum().astype(jnp.float32)
  metrics = {
    'loss': losses.sum() / jnp.maximum(weight, 1),
    'gradient_norm': norms.mean(),
    'weight': weight,
  }
  new_state = state._replace(
    step=state.step + 1,
    params=params,
    opt_state=squares,
  )
  if options.skip:
    new_state = where_finite(state, new_state, metrics)
  return new_state, metrics
