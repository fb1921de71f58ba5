"""Which trials one program can train: those whose configs differ only in numbers that do not change the program.

Dropout, weight decay and the like are traced, each trial with its own; rates of learning are a table with a column a trial; what only
decides when something is written stays outside of the program.
"""

import fnmatch
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from mmlm.utils.errors import UserError

# What is 0 or below is switched off: trials with it and without it are not of one program.
TRACED = (
  'optimizer.weight_decay',
  'train.label_smoothing',
  'model.dropout',
  'model.modality_dropout',
  'model.encoders.*.grid_dropout',
  'model.encoders.*.attention_dropout',
  'model.head.attention_dropout',
  'model.head.answer_dropout',
  'model.head.ctc_weight',
)
SCHEDULE = (
  'optimizer.learning_rate',
  'optimizer.warmup',
  'optimizer.final_fraction',
  'optimizer.schedule',
  'train.duration',
)
OUTSIDE = (
  'name',
  'card',
  'train.log_every',
  'train.eval_every',
  'train.patience',
  'train.keep_latest',
  'train.keep_best',
)
RATES = 'rates'


def _flat(config) -> dict:
  return flatten_dict(
    config.to_dict(), keep_empty_nodes=True, sep='.'
  )  # a model without encoders has an empty group of them


def _is_traced(key: str) -> bool:
  return any(fnmatch.fnmatch(key, pattern) for pattern in TRACED)


def shape_of(config) -> tuple:
  """What two completed configs must have in common to be trained by one program.

  Raises:
    UserError: a task whose step is one of its own.
  """
  if config.task == 'word_vectors':
    raise UserError(
      'task=word_vectors: word vectors move rows of tables on one device, a trial at a time. Choose --executor=local.'
    )
  values = _flat(config)
  # Batches of several lengths come in an order that depends on the seed.
  if len(config.data.buckets) > 1:
    free = (*SCHEDULE, *OUTSIDE)
  else:
    free = (*SCHEDULE, *OUTSIDE, 'seed')

  def told(key, value):
    if _is_traced(key):
      return (value > 0) - (value < 0)
    return value

  return tuple(
    sorted((key, repr(told(key, value))) for key, value in values.items() if key not in free)
  )


def groups_of(items: list, config_of) -> list[list]:
  """`items` in groups that one program can train each, in the order of their first; `config_of` gives the config of an item."""
  groups = {}
  for item in items:
    groups.setdefault(shape_of(config_of(item)), []).append(item)
  return list(groups.values())


def numbers_of(configs: list, schedules: list, totals: list[int]) -> dict:
  """What differs between K trials: {key: [K]}, and `RATES` [K, T] where their learning rates do.

  Args:
    schedules: of each trial, step -> learning rate.
    totals: steps of each trial; its row of the table ends with its last rate.
  """
  values = [_flat(config) for config in configs]

  def differs(key):
    return any(value[key] != values[0][key] for value in values)

  found = {
    key: np.array([value[key] for value in values], np.float32)
    for key in values[0]
    if _is_traced(key) and differs(key)
  }
  if any(map(differs, SCHEDULE)):
    rates = [
      np.asarray(jax.vmap(lambda step, rate=rate: jnp.float32(rate(step)))(jnp.arange(total)))
      for rate, total in zip(schedules, totals)
    ]
    found[RATES] = np.stack(
      list(
        itertools.starmap(
          lambda row, more: np.pad(row, (0, more), 'edge'),
          ((r, max(totals) - len(r)) for r in rates),
        )
      )
    )
  return found


def with_numbers(config, numbers: dict) -> ConfigDict:
  """`config` with the numbers of one trial, which may be traced."""
  return ConfigDict(
    unflatten_dict(
      _flat(config) | {key: value for key, value in numbers.items() if key != RATES}, sep='.'
    )
  )
