"""Which trials one program can train: those whose configs differ only in numbers that it can trace.

Which keys these are is stated where each key is declared (`traced`, `schedule`, `outside_program`
of mmlm/utils/options.py). Traced numbers, such as dropout and weight decay, are an argument of the
program; learning rates are a table with a row a trial; what only decides when something is written
stays outside of the program.

Axes: K trials, T steps of the longest of them.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from mmlm.config import options_in
from mmlm.tasks import TASKS
from mmlm.utils.errors import UserError
from mmlm.utils.options import Option

Schedule = Callable[[Any], Any]  # step -> learning rate
RATES = 'rates'
NO_OPTION = Option()  # of keys that are the user's, such as those of data.fields


def _flat(config: ConfigDict) -> dict[str, Any]:
  """Returns {path: value}; an empty group stays, such as the encoders of a language model."""
  return flatten_dict(config.to_dict(), keep_empty_nodes=True, sep='.')


def shape_of(config: ConfigDict) -> tuple:
  """Returns what two completed configs must have in common to be trained by one program.

  Raises:
    UserError: a task that has a train step of its own.
  """
  if not TASKS[config.task].trains_vectorised:
    raise UserError(
      f'task={config.task}: one program trains one trial of it. Choose --executor=local.'
    )
  options = options_in(config)
  # Batches of several lengths come in an order that depends on the seed.
  seed_is_free = len(config.data.buckets) <= 1
  shape = []
  for key, value in _flat(config).items():
    declared = options.get(key, NO_OPTION)
    if declared.schedule or declared.outside_program:
      continue
    if key == 'seed' and seed_is_free:
      continue
    if declared.traced:
      value = np.sign(value)  # 0 and less switch something off: another program
    shape.append((key, repr(value)))
  return tuple(sorted(shape))


def groups_of(items: list, config_of: Callable) -> list[list]:
  """Returns the items in groups that one program can train each, in the order of their first.

  Args:
    config_of: item -> its completed config.
  """
  groups: dict[tuple, list] = {}
  for item in items:
    shape = shape_of(config_of(item))
    groups.setdefault(shape, []).append(item)
  return list(groups.values())


def numbers_of(
  configs: Sequence[ConfigDict], schedules: Sequence[Schedule], totals: Sequence[int]
) -> dict[str, np.ndarray]:
  """Returns what differs between K trials: {key: [K]}, and `RATES` [K, T] of learning rates.

  Args:
    schedules: of each trial, step -> learning rate.
    totals: steps of each trial; its row of the table is filled up with its last rate.
  """
  flat_configs = list(map(_flat, configs))
  numbers = {}
  rates_differ = False
  for key, declared in options_in(configs[0]).items():
    values = [config[key] for config in flat_configs]
    if values.count(values[0]) == len(values):
      continue
    if declared.traced:
      numbers[key] = np.array(values, np.float32)
    if declared.schedule:
      rates_differ = True
  if rates_differ:
    numbers[RATES] = _table_of_rates(schedules, totals)
  return numbers


def _table_of_rates(schedules: Sequence[Schedule], totals: Sequence[int]) -> np.ndarray:
  """Returns the learning rates of all steps, [K, T]."""
  table = []
  longest = max(totals)
  for schedule, total in zip(schedules, totals):
    rates = _rates_of(schedule, total)
    missing = longest - total
    table.append(np.pad(rates, (0, missing), 'edge'))
  return np.stack(table)


def _rates_of(schedule: Schedule, total: int) -> jax.Array:
  """Returns the learning rates of `total` steps."""

  def rate(step: jax.Array) -> jax.Array:
    return jnp.float32(schedule(step))

  steps = jnp.arange(total)
  return jax.vmap(rate)(steps)


def with_numbers(config: ConfigDict, numbers: dict[str, Any]) -> ConfigDict:
  """Returns `config` with the numbers of one trial, which may be traced."""
  values = _flat(config)
  for key, value in numbers.items():
    if key != RATES:
      values[key] = value
  return ConfigDict(unflatten_dict(values, sep='.'))
