"""Optimizers and schedules by name (optax), with path rules for decay, learning rates and freezing.

A new one is a function and one line in `OPTIMIZERS` or `SCHEDULES`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from mmlm.config import to_steps
from mmlm.training.lora import adapted
from mmlm.utils.choices import one_of
from mmlm.utils.pytree import by_rules, name_of

# The section `optimizer` of a config -> gradient transformation
Optimizer = Callable[[Any], optax.GradientTransformation]
# (peak, warmup steps, total steps, final fraction of the peak) -> learning rate after the warm-up
Schedule = Callable[[float, int, int, float], optax.Schedule]


def adamw(config: Any) -> optax.GradientTransformation:
  """Adam; the decoupled weight decay is added by `make_optimizer`, as for all optimizers."""
  return optax.scale_by_adam(b1=config.beta1, b2=config.beta2, eps=config.epsilon)


def adafactor(config: Any) -> optax.GradientTransformation:
  """Adafactor with clipping of updates by block."""
  return optax.chain(
    optax.scale_by_factored_rms(),
    optax.clip_by_block_rms(1.0),
    optax.ema(config.beta1, debias=False),
  )


def sgd(config: Any) -> optax.GradientTransformation:
  """Plain gradient descent."""
  return optax.identity()


def lion(config: Any) -> optax.GradientTransformation:
  """Lion."""
  return optax.scale_by_lion(b1=config.beta1, b2=config.beta2)


OPTIMIZERS: dict[str, Optimizer] = {
  'adamw': adamw,
  'adafactor': adafactor,
  'sgd': sgd,
  'lion': lion,
}


def constant(
  peak: float,
  warmup: int,
  total: int,
  final_fraction: float,
) -> optax.Schedule:
  """The peak at all steps."""
  return optax.constant_schedule(peak)


def cosine(
  peak: float,
  warmup: int,
  total: int,
  final_fraction: float,
) -> optax.Schedule:
  """Cosine decay to the final fraction."""
  return optax.cosine_decay_schedule(peak, max(total - warmup, 1), final_fraction)


def linear(
  peak: float,
  warmup: int,
  total: int,
  final_fraction: float,
) -> optax.Schedule:
  """Linear decay to the final fraction."""
  return optax.linear_schedule(peak, peak * final_fraction, max(total - warmup, 1))


def inverse_sqrt(
  peak: float,
  warmup: int,
  total: int,
  final_fraction: float,
) -> optax.Schedule:
  """Decay by the square root of the step (Vaswani et al. 2017, eq. 3)."""

  def schedule(step: Any) -> Any:
    return peak * (1 + jnp.maximum(step, 0) / max(warmup, 1)) ** -0.5

  return schedule


SCHEDULES: dict[str, Schedule] = {
  'constant': constant,
  'cosine': cosine,
  'linear': linear,
  'inverse_sqrt': inverse_sqrt,
}


def make_schedule(
  config: Any,
  total_steps: int,
  batch_size: int,
  steps_per_epoch: int,
) -> optax.Schedule:
  """Returns the learning rate of a step: linear warm-up, then the named schedule.

  Args:
    config: the section `optimizer`.
  """
  warmup = to_steps(config.warmup, 'optimizer.warmup', batch_size, steps_per_epoch, total_steps)
  named = SCHEDULES[one_of('optimizer.schedule', config.schedule, SCHEDULES)]
  peak = config.learning_rate
  schedule = named(peak, warmup, total_steps, config.final_fraction)
  if warmup:
    warm_up = optax.linear_schedule(0.0, peak, warmup)
    return optax.join_schedules([warm_up, schedule], [warmup])
  return schedule


def rates_of(config: Any, params: Any) -> Any:
  """Returns the tree of multipliers of the learning rate, by optimizer.rate_rules.

  It is 0 for matrices that LoRA adapts and for statistics of features.
  """
  frozen = adapted(params)
  rates = by_rules(params, config.rate_rules, 'optimizer.rate_rules')

  def rate_of(path: tuple, rate: float) -> float:
    name = name_of(path)
    if name in frozen or '/normalization/' in name:
      return 0.0
    return rate

  return jax.tree_util.tree_map_with_path(rate_of, rates)


def make_optimizer(
  config: Any,
  schedule: optax.Schedule,
  params: Any,
) -> optax.GradientTransformation:
  """Builds clipping, the named optimizer, decoupled weight decay and the schedule.

  Parameters with rate 0 are frozen: they have no state, and the norm that is clipped leaves them
  out.

  Args:
    config: the section `optimizer`.
  """
  rates = rates_of(config, params)
  decays = by_rules(params, config.decay_rules, 'optimizer.decay_rules')

  def clip(updates: Any, params: Any) -> Any:
    trained = jax.tree.map(lambda u, rate: u if rate else jnp.zeros_like(u), updates, rates)
    return optax.clip_by_global_norm(config.clip_norm).update(trained, optax.EmptyState())[0]

  def decay(updates: Any, params: Any) -> Any:
    return jax.tree.map(_decayed, updates, params, decays)

  def _decayed(
    update: Array,
    value: Array,
    factor: float,
  ) -> Array:
    if factor:
      return update + config.weight_decay * factor * value
    return update

  def scale(updates: Any, params: Any) -> Any:
    return jax.tree.map(lambda u, rate: u * rate if rate != 1 else u, updates, rates)

  optimizer = OPTIMIZERS[one_of('optimizer.name', config.name, OPTIMIZERS)](config)
  labels = jax.tree.map(lambda rate: 'train' if rate else 'freeze', rates)
  transforms: Any = {'train': optimizer, 'freeze': optax.set_to_zero()}
  return optax.chain(
    optax.stateless(clip) if config.clip_norm else optax.identity(),
    optax.multi_transform(transforms, labels),
    optax.stateless(decay),
    optax.stateless(scale),
    optax.scale_by_learning_rate(schedule),
  )
