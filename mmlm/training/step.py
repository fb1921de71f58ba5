"""The train step: pure, the same on one device and on many.

Axes: B batch.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from mmlm import parallel


class TrainState(NamedTuple):
  """Everything that a step changes; trees of arrays."""

  step: Array  # steps done, int32
  params: Any
  opt_state: Any
  ema: Any  # average of the parameters, or ()
  rng: Array  # key data of the run, uint32; folded with the step, never changed
  carry: Any = ()  # state of the model, carried from step to step for each example; or ()
  # Number of iterates averaged in `ema` (0: averaging has not started); () without averaging.
  averaged: Any = ()


class StepOptions(NamedTuple):
  """The static options of a step."""

  optimizer: optax.GradientTransformation
  # (params, batch, rng) -> (sum of the losses, sum of the weights). With a carry, which is then in
  # the batch as 'carry', the second is (sum of the weights, new carry).
  loss: Callable
  accumulate: int = 1
  ema_decay: float = 0.0
  skip: bool = False  # skip updates whose loss or gradient is not finite


def initial_state(
  params: Any,
  options: StepOptions,
  seed: int,
  carry: Any = (),
  averages: bool = False,
) -> TrainState:
  """Returns the state before the first step.

  Args:
    averages: a plain mean of iterates may begin later (`TrainState.averaged`).
  """
  ema = ()
  if options.ema_decay or averages:
    ema = jax.tree.map(jnp.copy, params)
  averaged = ()
  if averages:
    averaged = jnp.zeros((), jnp.int32)
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    opt_state=options.optimizer.init(params),
    ema=ema,
    rng=jax.random.key_data(jax.random.key(seed, impl='threefry2x32')),
    carry=carry,
    averaged=averaged,
  )


def gradient(
  params: Any,
  batch: dict,
  rng: Array,
  options: StepOptions,
) -> tuple[tuple[tuple[Array, Array], Any], Any]:
  """Computes the gradient of the summed loss over the batch of one device.

  Returns:
    ((loss sum, weight sum), gradient), added up over micro-batches, and the new carry.
  """

  def sums(
    params: Any,
    batch: dict,
    rng: Array,
  ) -> tuple:
    (loss, aux), grads = jax.value_and_grad(options.loss, has_aux=True)(params, batch, rng)
    weight, carry = aux if 'carry' in batch else (aux, ())
    return ((loss, weight), parallel.shard_gradients(grads)), carry

  if options.accumulate == 1:
    return sums(params, batch, rng)

  def add(total: Any, inputs: tuple) -> tuple:
    index, micro_batch = inputs
    new, carry = sums(params, micro_batch, jax.random.fold_in(rng, index))
    return jax.tree.map(jnp.add, total, new), carry

  zeros: Any = ((0.0, 0.0), jax.tree.map(jnp.zeros_like, params))
  micro_batches = _micro_batches(batch, options.accumulate)
  total, carry = jax.lax.scan(add, zeros, (jnp.arange(options.accumulate), micro_batches))
  return total, jax.tree.map(_merge_micro_batches, carry)


def _micro_batches(batch: dict, count: int) -> dict:
  """[B, ...] -> [A, B/A, ...], interleaved, so that padding at the end of a batch is spread."""

  def split(x: Array) -> Array:
    return x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1)

  return jax.tree.map(split, batch)


def _merge_micro_batches(x: Array) -> Array:
  return x.swapaxes(0, 1).reshape(-1, *x.shape[2:])


def train_step(
  state: TrainState,
  batch: dict,
  options: StepOptions,
) -> tuple[TrainState, dict]:
  """Does one update by the global sum of the losses' gradients over the global weight.

  Args:
    batch: the examples of this device. The recurrent state (`carry`) is per example: it is
      not reduced over devices, and gradients are truncated there (truncated back-propagation).

  Returns:
    The new state, and loss (mean over the global weight), gradient norm (before clipping), weight.
  """
  run_key = jax.random.wrap_key_data(state.rng)
  rng = jax.random.fold_in(run_key, state.step)
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
  metrics = {
    'loss': loss * scale,
    'gradient_norm': optax.global_norm(grads),
    'weight': weight,
  }
  new = TrainState(
    step=state.step + 1,
    params=params,
    opt_state=opt_state,
    ema=ema,
    rng=state.rng,
    carry=carry,
    averaged=averaged,
  )
  if options.skip:
    new = where_finite(state, new, metrics)
  return new, metrics


def _average(
  state: TrainState,
  params: Any,
  averaged: Any,
  options: StepOptions,
) -> Any:
  """Returns the average of the parameters after a step that made `params`."""
  if options.ema_decay:
    # The average forgets its random start: the decay grows with the step (as in TensorFlow's
    # moving averages).
    decay = jnp.minimum(options.ema_decay, (1 + state.step) / (10 + state.step))
    return jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, state.ema, params)
  if not jax.tree.leaves(averaged):
    return state.ema
  share = 1 / jnp.maximum(averaged, 1)

  def update(old: Array, new: Array) -> Array:
    return jnp.where(averaged > 0, old + share * (new - old), new)

  return jax.tree.map(update, state.ema, params)


def where_finite(
  state: Any,
  new: Any,
  metrics: dict,
) -> Any:
  """Returns `new`, or if the loss or gradient is not finite the old state with the step counted."""
  finite_loss = jnp.isfinite(metrics['loss'])
  finite = finite_loss & jnp.isfinite(metrics['gradient_norm'])

  # A loop of no iteration or one, not a `where`: the compiler would fuse that with the update,
  # whose rounding would change.
  def condition(loop: tuple) -> Array:
    return loop[0]

  def restore(loop: tuple) -> tuple:
    _, _, old = loop
    return jnp.zeros((), bool), old, old

  old = state._replace(step=new.step)
  _, result, _ = jax.lax.while_loop(condition, restore, (~finite, new, old))
  return result
