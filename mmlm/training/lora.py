"""LoRA (Hu et al. 2021): matrices stand still and learn a product of two narrow ones. Path rules choose the matrices; no model knows.

The tree of parameters has one more branch, 'lora', with `down` [I, R] and `up` [R, O] below the name of each matrix. A kernel with
more than two axes is the matrix I x O of the split of its axes at which I + O is smallest.
"""

import math

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from mmlm.utils.errors import UserError
from mmlm.utils.pytree import by_rules, flat

BRANCH = 'lora'


def _sides(shape: tuple) -> tuple[int, int]:
  """I and O of a kernel."""
  return min(
    (
      (
        math.prod(shape[:i]),
        math.prod(shape[i:]),
      )
      for i in range(1, len(shape))
    ),
    key=sum,
  )


def add_lora(params: dict, rules: tuple, key) -> dict:
  """`params` with factors for the leaves whose first rule gives a rank above 0; their product is zero at first.

  Args:
    rules: ordered (regex, rank); what none covers has rank 0.

  Raises:
    UserError: a rule that covers no parameter, a leaf that is no matrix, a rank that is none.
  """
  if not rules:
    return params
  ranks = flat(by_rules(params, [*rules, ('.*', 0)], 'optimizer.lora_rules'))
  factors = {}
  for i, (name, leaf) in enumerate(flat(params).items()):
    rank = ranks[name]
    if not isinstance(rank, int) or rank < 0:
      raise UserError(
        f'optimizer.lora_rules: rank {rank!r} for {name}: expected a whole number, 0 for none.'
      )
    if rank and leaf.ndim < 2:
      raise UserError(
        f'optimizer.lora_rules: {name} has the shape {leaf.shape} and is no matrix. Name kernels, such as ".*/query/kernel".'
      )
    if rank:
      rows, columns = _sides(leaf.shape)
      factors[f'{name}/down'] = (
        jax.random.normal(jax.random.fold_in(key, i), (rows, rank), leaf.dtype) * rows**-0.5
      )
      factors[f'{name}/up'] = jnp.zeros((rank, columns), leaf.dtype)
  return params | {BRANCH: unflatten_dict(factors, sep='/')}


def merge_lora(params: dict, alpha: float) -> dict:
  """Parameters as the model wants them: each matrix + alpha / rank x its product. No gradient reaches the matrix itself."""
  if BRANCH not in params:
    return params
  leaves, factors = (
    flatten_dict(tree, sep='/')
    for tree in ({k: v for k, v in params.items() if k != BRANCH}, params[BRANCH])
  )
  for name in adapted(params):
    down = factors[f'{name}/down']
    up = factors[f'{name}/up']
    kernel = jax.lax.stop_gradient(leaves[name])
    leaves[name] = kernel + (alpha / down.shape[1] * (down @ up)).reshape(kernel.shape)
  return unflatten_dict(leaves, sep='/')


def adapted(params: dict) -> set[str]:
  """Names of the leaves that stand still because they have factors."""
  return {
    name.removesuffix('/up')
    for name in flatten_dict(params.get(BRANCH, {}), sep='/')
    if name.endswith('/up')
  }
