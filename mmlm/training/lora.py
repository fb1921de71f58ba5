"""LoRA (Hu et al. 2021): frozen matrices learn a product of two narrow ones.

Path rules choose the matrices; models do not know of it. The tree of parameters has one more
branch, 'lora', with `down` [I, R] and `up` [R, O] below the name of each matrix. A kernel with more
than two axes is the matrix I x O of the split of its axes at which I + O is smallest.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array

from mmlm.utils.errors import UserError
from mmlm.utils.pytree import by_rules, flat

BRANCH = 'lora'


def _matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
  """Returns I and O of a kernel."""
  splits = []
  for i in range(1, len(shape)):
    splits.append((math.prod(shape[:i]), math.prod(shape[i:])))
  return min(splits, key=sum)


def add_lora(
  params: dict,
  rules: tuple,
  key: Array,
) -> dict:
  """Adds factors for the parameters whose rule gives a rank above 0; their product is 0 at first.

  Args:
    rules: ordered (regex, rank); parameters that none covers have rank 0.

  Raises:
    UserError: a rule that covers no parameter, a parameter that is no matrix, an invalid rank.
  """
  if not rules:
    return params
  ranks = flat(by_rules(params, [*rules, ('.*', 0)], 'optimizer.lora_rules'))
  factors = {}
  for i, (name, leaf) in enumerate(flat(params).items()):
    rank = ranks[name]
    _check(name, leaf, rank)
    if rank:
      inputs, outputs = _matrix_shape(leaf.shape)
      random = jax.random.normal(jax.random.fold_in(key, i), (inputs, rank), leaf.dtype)
      factors[f'{name}/down'] = random * inputs**-0.5
      factors[f'{name}/up'] = jnp.zeros((rank, outputs), leaf.dtype)
  return params | {BRANCH: unflatten_dict(factors, sep='/')}


def _check(
  name: str,
  leaf: Array,
  rank: int,
) -> None:
  if not isinstance(rank, int) or rank < 0:
    raise UserError(
      f'optimizer.lora_rules: rank {rank!r} for {name}: expected a whole number, 0 for none.'
    )
  if rank and leaf.ndim < 2:
    raise UserError(
      f'optimizer.lora_rules: {name} has the shape {leaf.shape} and is no matrix. Name kernels, '
      'such as ".*/query/kernel".'
    )


def merge_lora(params: dict, alpha: float) -> dict:
  """Returns the parameters that the model reads: each matrix + alpha / rank x its product.

  No gradient reaches the matrix itself.
  """
  if BRANCH not in params:
    return params
  model_params = {name: branch for name, branch in params.items() if name != BRANCH}
  leaves = flatten_dict(model_params, sep='/')
  factors: dict[str, Any] = flatten_dict(params[BRANCH], sep='/')
  for name in adapted(params):
    down = factors[f'{name}/down']
    up = factors[f'{name}/up']
    kernel: Any = jax.lax.stop_gradient(leaves[name])
    product = alpha / down.shape[1] * (down @ up)
    leaves[name] = kernel + product.reshape(kernel.shape)
  return unflatten_dict(leaves, sep='/')


def adapted(params: dict) -> set[str]:
  """Returns the names of the parameters that are frozen because they have factors."""
  names = set()
  for name in flatten_dict(params.get(BRANCH, {}), sep='/'):
    if name.endswith('/up'):
      names.add(name.removesuffix('/up'))
  return names
