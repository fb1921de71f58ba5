"""Where the parameters of a model are on a mesh: ordered rules by path, and named sets of rules.

A rule is (regex, axes): a mesh axis, or '' for none, for each of the last dimensions of the
parameter. Of the dimensions that a rule leaves free, the largest that the axis 'fsdp' divides is
divided by it (ZeRO stage 3, Rajbhandari et al. 2020, 5.3), unless the rule names 'fsdp' itself;
vectors stay whole, since they are small. The axis 'whole' alone keeps a parameter whole. Only the
last dimensions are named, so that a rule also covers stacked layers (`scan`).
"""

import math
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mmlm.parallel.axes import AXES, BATCH
from mmlm.utils.choices import one_of
from mmlm.utils.errors import UserError
from mmlm.utils.pytree import by_rules, flat, name_of

WHOLE = ('whole',)
# Heads and the hidden values of a feed-forward are divided, so that a block sums once after each
# (Megatron-LM, Shoeybi et al. 2019, 3), and the vocabulary. Other parts have small parameters.
TRANSFORMER = (
  ('.*/(query|key|value)/kernel', ('', 'tensor', '')),  # [D, H, E]
  ('.*/(query|key|value)/bias', ('tensor', '')),
  ('.*/out/kernel', ('tensor', '', '')),  # [H, E, D]
  ('.*/(up|gate)/kernel', ('', 'tensor')),
  ('.*/(up|gate)/bias', ('tensor',)),
  ('.*/down/kernel', ('tensor', '')),
  ('(.*/)?(table|embedding)', ('tensor', '')),  # [V, D]
  ('.*/labels/kernel', ('', 'tensor')),  # of CTC, [D, V]
  ('.*/labels/bias', ('tensor',)),
  ('.*', ()),
)
RULES = {'transformer': TRANSFORMER, 'fsdp': (('.*', ()),), 'replicated': (('.*', WHOLE),)}

Specs = dict[str, tuple[P, tuple[int, ...]]]  # {name: (PartitionSpec, shape)}


class _Axes(NamedTuple):
  axes: tuple[str, ...]
  by_user: bool  # the user's rule, whose mistakes are errors


def shardings(
  mesh: jax.sharding.Mesh,
  rules: tuple,
  tree: Any,
) -> Any:
  """Returns the tree of NamedShardings of parameters, or of a training state.

  Optimizer state and averages follow their parameters, what is carried from step to step is divided
  as batches are.

  Args:
    rules: (regex, axes) pairs, and names of `RULES`, whose rules may cover nothing.

  Raises:
    UserError: a parameter that no rule covers, a rule of the user's that covers none, an axis that
      does not exist or does not divide its dimension.
  """
  params = getattr(tree, 'params', tree)
  specs = parameter_specs(mesh, rules, params)
  longest_first = sorted(specs, key=len, reverse=True)

  def place(path: tuple, leaf: Any) -> NamedSharding:
    # The optimizer's leaves end with a parameter's name: opt_state/1/mu/head/output/kernel.
    parameter = _parameter_of(name_of(path), longest_first)
    spec, shape = specs.get(parameter, (P(), ()))
    if jax.numpy.shape(leaf) != shape:
      spec = P()
    return NamedSharding(mesh, spec)

  placed = jax.tree_util.tree_map_with_path(place, tree)
  if params is tree:
    return placed
  by_example = NamedSharding(mesh, P(BATCH))
  return placed._replace(carry=jax.tree.map(lambda _: by_example, tree.carry))


def _parameter_of(name: str, parameters: Iterable[str]) -> str:
  for parameter in parameters:
    if name == parameter or name.endswith(f'/{parameter}'):
      return parameter
  return ''


def parameter_specs(
  mesh: jax.sharding.Mesh,
  rules: tuple,
  params: Any,
) -> Specs:
  """Returns the PartitionSpec and the shape of each parameter by name."""
  leaves = flat(params)
  all_rules = []
  for rule in rules:
    if isinstance(rule, str):
      all_rules += _ready_rules(rule, leaves)
    else:
      regex, axes = _checked(rule)
      all_rules.append((regex, _Axes(axes, by_user=True)))
  tree = by_rules(params, all_rules, 'parallel.rules')
  chosen = jax.tree.structure(params).flatten_up_to(tree)
  specs = {}
  for (name, leaf), axes in zip(leaves.items(), chosen):
    specs[name] = (_spec(mesh, name, leaf.shape, axes), leaf.shape)
  return specs


def _ready_rules(name: str, parameters: Iterable[str]) -> list[tuple[str, _Axes]]:
  """Returns the rules of a set that cover a parameter."""
  rules = []
  for regex, axes in RULES[one_of('parallel.rules', name, RULES)]:
    if any(re.fullmatch(regex, parameter) for parameter in parameters):
      rules.append((regex, _Axes(axes, by_user=False)))
  return rules


def _checked(rule: tuple) -> tuple:
  known = {*AXES, '', *WHOLE}
  if len(rule) == 2 and isinstance(rule[1], tuple) and known.issuperset(rule[1]):
    axes = rule[1]
    if 'whole' not in axes or axes == WHOLE:
      return rule
  raise UserError(
    f"parallel.rules: {rule!r} is no rule. Write ('head/.*/kernel', ('', 'tensor')) with the axes "
    f'{AXES}, or the name of a set: {sorted(RULES)}.'
  )


def _spec(
  mesh: jax.sharding.Mesh,
  name: str,
  shape: tuple[int, ...],
  rule: _Axes,
) -> P:
  axes = rule.axes
  if axes == WHOLE:
    return P()
  if len(axes) > len(shape):
    if rule.by_user:
      raise UserError(f'parallel.rules: {axes} for {name}, which has the dimensions {shape}.')
    # The key of a recurrent decoder has no heads: divided, each step would communicate.
    axes = ()
  spec = [''] * (len(shape) - len(axes)) + list(axes)
  for i, (axis, size) in enumerate(zip(spec, shape)):
    if not axis:
      continue
    indivisible = size % mesh.shape[axis]
    if indivisible and rule.by_user:
      raise UserError(
        f'parallel.rules: {name} has the dimensions {shape}: {axis}={mesh.shape[axis]} does not '
        f'divide {size}.'
      )
    if indivisible or mesh.shape[axis] == 1:
      spec[i] = ''
  _add_fsdp(mesh, spec, shape)
  return P(*(axis or None for axis in spec))


def _add_fsdp(
  mesh: jax.sharding.Mesh,
  spec: list[str],
  shape: tuple[int, ...],
) -> None:
  """Divides the largest free dimension of a matrix over the axis 'fsdp', where it divides it."""
  size = mesh.shape['fsdp']
  if size == 1 or 'fsdp' in spec or len(shape) < 2:
    return
  free = [i for i, axis in enumerate(spec) if not axis and shape[i] % size == 0]
  if free:
    spec[max(free, key=lambda i: shape[i])] = 'fsdp'


def bytes_per_device(tree: Any, placed: Any) -> int:
  """Returns the bytes on one device of a tree of arrays or shapes, under a tree of shardings."""

  def size(leaf: Any, sharding: NamedSharding) -> int:
    return math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize

  return sum(jax.tree.leaves(jax.tree.map(size, tree, placed)))
