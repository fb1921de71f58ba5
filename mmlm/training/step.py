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


class StepOptions(NamedTuple):
  optimizer: optax.GradientTransformation
  loss: Callable  # (params, batch, rng) -> (sum of the losses, sum of the weights)
  accumulate: int = 1
  ema_decay: float = 0.0
  skip: bool = False  # leave the state as it is, but for the count of steps, where the loss or the gradient is not finite


def initial_state(params, options: StepOptions, seed: int) -> TrainState:
  ema = jax.tree.map(jnp.copy, params) if options.ema_decay else ()
  rng = jax.random.key_data(jax.random.key(seed, impl='threefry2x32'))
  return TrainState(jnp.zeros((), jnp.int32), params, options.optimizer.init(params), ema, rng)


def gradient(params, batch, rng, options: StepOptions):
  """Sums over the batch of one device, micro-batch by micro-batch: ((loss, weight), gradient of the loss sum)."""

  def value_and_grad(*given):
    sums, grads = jax.value_and_grad(options.loss, has_aux=True)(*given)
    return sums, parallel.as_parameters(grads)

  if options.accumulate == 1:
    return value_and_grad(params, batch, rng)
  # [B, ...] -> [A, B/A, ...] with interleaved rows, so that padding at the end of a batch is spread evenly.
  micro = jax.tree.map(lambda x: x.reshape(-1, options.accumulate, *x.shape[1:]).swapaxes(0, 1), batch)

  def add(total, inputs):
    index, part = inputs
    return jax.tree.map(jnp.add, total, value_and_grad(params, part, jax.random.fold_in(rng, index))), None

  zero = ((0.0, 0.0), jax.tree.map(jnp.zeros_like, params))
  return jax.lax.scan(add, zero, (jnp.arange(options.accumulate), micro))[0]


def train_step(state: TrainState, batch: dict, options: StepOptions) -> tuple[TrainState, dict]:
  """One update. The gradient is the global sum of the losses' gradients over the global weight.

  Args:
    batch: the rows of this device.

  Returns:
    The new state, and loss (mean over the global weight), gradient norm (before clipping) and weight.
  """
  rng = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
  sums = gradient(state.params, batch, parallel.own_key(rng), options)
  (loss, weight), grads = parallel.all_sum(sums)
  scale = 1 / jnp.maximum(weight, 1e-8)
  grads = jax.tree.map(lambda g: g * scale, grads)
  updates, opt_state = options.optimizer.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  ema = state.ema
  if options.ema_decay:
    # The average forgets its random start: the decay grows with the step (as in TensorFlow's moving averages).
    decay = jnp.minimum(options.ema_decay, (1 + state.step) / (10 + state.step))
    ema = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, ema, params)
  metrics = {'loss': loss * scale, 'gradient_norm': optax.global_norm(grads), 'weight': weight}
  new = TrainState(state.step + 1, params, opt_state, ema, state.rng)
  if options.skip:
    finite = jnp.isfinite(metrics['loss']) & jnp.isfinite(metrics['gradient_norm'])
    # A loop of no turn or one, not a `where`: the compiler would fuse that with the update, which is then rounded in another way.
    again, back = lambda carry: carry[0], lambda carry: (jnp.zeros((), bool), carry[2], carry[2])
    new = jax.lax.while_loop(again, back, (~finite, new, state._replace(step=new.step)))[1]
  return new, metrics
