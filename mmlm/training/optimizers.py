"""Optimizers and schedules by name (optax), with path rules for decay, rates and freezing."""

import jax
import jax.numpy as jnp
import optax

from mmlm.config import to_steps
from mmlm.training.lora import adapted
from mmlm.utils.choices import one_of
from mmlm.utils.pytree import by_rules, name_of

OPTIMIZERS = {
  'adamw': lambda c: optax.scale_by_adam(b1=c.beta1, b2=c.beta2, eps=c.epsilon),
  'adafactor': lambda c: optax.chain(
    optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0), optax.ema(c.beta1, debias=False)
  ),
  'sgd': lambda c: optax.identity(),
  'lion': lambda c: optax.scale_by_lion(b1=c.beta1, b2=c.beta2),
}

SCHEDULES = {
  'constant': lambda rate, warmup, total, end: optax.constant_schedule(rate),
  'cosine': lambda rate, warmup, total, end: optax.cosine_decay_schedule(
    rate, max(total - warmup, 1), end
  ),
  'linear': lambda rate, warmup, total, end: optax.linear_schedule(
    rate, rate * end, max(total - warmup, 1)
  ),
  # Vaswani et al. 2017, eq. 3: the peak is reached when the warm-up ends.
  'inverse_sqrt': lambda rate, warmup, total, end: (
    lambda step: rate * (1 + jnp.maximum(step, 0) / max(warmup, 1)) ** -0.5
  ),
}


def make_schedule(config, total_steps: int, batch_size: int, steps_per_epoch: int):
  """Learning rate of a step: linear warm-up, then the named schedule."""
  warmup = to_steps(config.warmup, 'optimizer.warmup', batch_size, steps_per_epoch, total_steps)
  named = SCHEDULES[one_of('optimizer.schedule', config.schedule, SCHEDULES)]
  rate = config.learning_rate
  after = named(rate, warmup, total_steps, config.final_fraction)
  if warmup:
    return optax.join_schedules([optax.linear_schedule(0.0, rate, warmup), after], [warmup])
  return after


def rates_of(config, params):
  """The tree of multipliers of the learning rate: those of the rules, and 0 for what LoRA holds and for statistics of features."""
  held = adapted(params)
  rates = by_rules(params, config.rate_rules, 'optimizer.rate_rules')
  return jax.tree_util.tree_map_with_path(
    lambda path, rate: 0.0 if name_of(path) in held or '/normalization/' in name_of(path) else rate,
    rates,
  )


def make_optimizer(config, schedule, params) -> optax.GradientTransformation:
  """Clipping, the named optimizer, decoupled weight decay and the schedule.

  Leaves with rate 0 are frozen: they keep no state and do not count in the norm that is clipped.
  """
  rates = rates_of(config, params)
  decays = by_rules(params, config.decay_rules, 'optimizer.decay_rules')

  def clip(updates, params):
    updates = jax.tree.map(lambda u, r: u if r else jnp.zeros_like(u), updates, rates)
    return optax.clip_by_global_norm(config.clip_norm).update(updates, optax.EmptyState())[0]

  def decay(u, p, d):
    return u + config.weight_decay * d * p if d else u

  def scale(u, r):
    return u * r if r != 1 else u

  core = OPTIMIZERS[one_of('optimizer.name', config.name, OPTIMIZERS)](config)
  labels = jax.tree.map(lambda rate: 'train' if rate else 'freeze', rates)
  return optax.chain(
    optax.stateless(clip) if config.clip_norm else optax.identity(),
    optax.multi_transform({'train': core, 'freeze': optax.set_to_zero()}, labels),
    optax.stateless(lambda updates, params: jax.tree.map(decay, updates, params, decays)),
    optax.stateless(lambda updates, params: jax.tree.map(scale, updates, rates)),
    optax.scale_by_learning_rate(schedule),
  )
