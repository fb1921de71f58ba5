"""The one train step: pure, the same on one device and on many.

Axes: B batch.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mmlm import parallel


class TrainState(NamedTuple):
  step: jax.Array  # steps done, int32
  params: Any
  opt_state: Any
  ema: Any  # moving average of the parameters, or ()
  rng: jax.Array  # key data of the run, uint32; folded with the step, never changed
  carry: Any = ()  # what a model hands from one step to the next, or (): a row for each row of the batch, on the device that has it
  averaged: Any = ()  # in place of a moving average: iterates whose plain mean `ema` is (0: it follows the parameters), or ()


class StepOptions(NamedTuple):
  optimizer: optax.GradientTransformation
  # (params, batch, rng) -> (sum of the losses, sum of the weights); with a carry, which then stands in the batch as 'carry', the second
  # is (sum of the weights, new carry)
  loss: Callable
  accumulate: int = 1
  ema_decay: float = 0.0
  skip: bool = False  # leave the state as it is, but for the count of steps, where the loss or the gradient is not finite


def initial_state(
  params, options: StepOptions, seed: int, carry=(), averages: bool = False
) -> TrainState:
  """`averages`: the mean of iterates may begin some time (`TrainState.averaged`)."""
  if options.ema_decay or averages:
    ema = jax.tree.map(jnp.copy, params)
  else:
    ema = ()
  rng = jax.random.key_data(jax.random.key(seed, impl='threefry2x32'))
  if averages:
    averaged = jnp.zeros((), jnp.int32)
  else:
    averaged = ()
  return TrainState(
    jnp.zeros((), jnp.int32), params, options.optimizer.init(params), ema, rng, carry, averaged
  )


def gradient(params, batch, rng, options: StepOptions):
  """Sums over the batch of one device, micro-batch by micro-batch: ((loss, weight), gradient of the loss sum), and the new carry."""

  def sums(params, batch, rng):
    (loss, other), grads = jax.value_and_grad(options.loss, has_aux=True)(params, batch, rng)
    weight, carry = other if 'carry' in batch else (other, ())
    return ((loss, weight), parallel.shard_gradients(grads)), carry

  if options.accumulate == 1:
    return sums(params, batch, rng)
  # [B, ...] -> [A, B/A, ...] with interleaved rows, so that padding at the end of a batch is spread evenly.
  micro = jax.tree.map(
    lambda x: x.reshape(-1, options.accumulate, *x.shape[1:]).swapaxes(0, 1), batch
  )

  def add(total, inputs):
    index, part = inputs
    found, carry = sums(params, part, jax.random.fold_in(rng, index))
    return jax.tree.map(jnp.add, total, found), carry

  zero = ((0.0, 0.0), jax.tree.map(jnp.zeros_like, params))
  total, carry = jax.lax.scan(add, zero, (jnp.arange(options.accumulate), micro))
  return total, jax.tree.map(
    lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]),
    carry,
  )


def train_step(state: TrainState, batch: dict, options: StepOptions) -> tuple[TrainState, dict]:
  """One update. The gradient is the global sum of the losses' gradients over the global weight.

  Args:
    batch: the rows of this device. What a model carries from step to step goes with its rows: it is neither summed nor copied
      between devices, and a gradient ends where it comes in (truncated back-propagation).

  Returns:
    The new state, and loss (mean over the global weight), gradient norm (before clipping) and weight.
  """
  rng = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
  if jax.tree.leaves(state.carry):
    batch = batch | {'carry': state.carry}
  sums, carry = gradient(state.params, batch, parallel.device_key(rng), options)
  (loss, weight), grads = parallel.all_sum(sums)
  scale = 1 / jnp.maximum(weight, 1e-8)
  grads = jax.tree.map(lambda g: g * scale, grads)
  updates, opt_state = options.optimizer.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  averaged = jax.tree.map(lambda count: jnp.where(count > 0, count + 1, 0), state.averaged)
  ema = _average(state, params, averaged, options)
  metrics = {'loss': loss * scale, 'gradient_norm': optax.global_norm(grads), 'weight': weight}
  new = TrainState(state.step + 1, params, opt_state, ema, state.rng, carry, averaged)
  return where_finite(state, new, metrics) if options.skip else new, metrics


def _average(state: TrainState, params, averaged, options: StepOptions):
  """The average of parameters after a step that gave `params`."""
  if options.ema_decay:
    # The average forgets its random start: the decay grows with the step (as in TensorFlow's moving averages).
    decay = jnp.minimum(options.ema_decay, (1 + state.step) / (10 + state.step))
    return jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, state.ema, params)
  if not jax.tree.leaves(averaged):
    return state.ema
  share = 1 / jnp.maximum(averaged, 1)
  return jax.tree.map(
    lambda old, new: jnp.where(averaged > 0, old + share * (new - old), new), state.ema, params
  )


def where_finite(state, new, metrics: dict):
  """The state `new` after a step, or where the loss or the gradient is not finite the one before, with one step more counted."""
  finite = jnp.isfinite(metrics['loss']) & jnp.isfinite(metrics['gradient_norm'])

  # A loop of no turn or one, not a `where`: the compiler would fuse that with the update, which is then rounded in another way.
  def again(loop):
    return loop[0]

  def back(loop):
    return (jnp.zeros((), bool), loop[2], loop[2])

  return jax.lax.while_loop(again, back, (~finite, new, state._replace(step=new.step)))[1]
