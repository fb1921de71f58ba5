"""Where the parameters of a model lie on a mesh: ordered rules by path, and ready-made ones for our models.

A rule is (regex, axes): a mesh axis, or '' for none, for each of the last dimensions of the parameter. Whatever a rule leaves free, the
largest dimension that the axis 'fsdp' divides is divided by it (ZeRO stage 3, Rajbhandari et al. 2020, 5.3), unless the rule names 'fsdp'
itself; vectors stay whole, since they weigh nothing. The axis 'whole' alone keeps a parameter whole. Only the last dimensions are named,
so that a rule covers a parameter also where layers are stacked on a first axis (`scan`).
"""

import math
import re

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mmlm.parallel.axes import AXES, BATCH
from mmlm.utils.choices import one_of
from mmlm.utils.errors import UserError
from mmlm.utils.pytree import by_rules, flat, name_of

WHOLE = ('whole',)
# Heads and the hidden values of a feed-forward are divided, so that a block sums once behind each (Megatron-LM, Shoeybi et al. 2019, 3),
# and the rows of a vocabulary. Every other part of ours has small parameters.
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


def shardings(mesh: jax.sharding.Mesh, rules: tuple, tree):
  """The tree of NamedShardings of parameters, or of a training state, whose optimizer state and average follow its parameters, and what it
  carries from step to step the rows of batches.

  Args:
    rules: (regex, axes) pairs, and names of `RULES`, whose rules that cover nothing, or whose axes do not divide a dimension, do nothing.

  Raises:
    UserError: a parameter that no rule covers, a rule of the user's that covers none, an axis that is none or does not divide.
  """
  specs = parameter_specs(mesh, rules, getattr(tree, 'params', tree))
  longest = sorted(specs, key=len, reverse=True)

  def place(path, leaf):
    name = name_of(path)
    shape = jax.numpy.shape(leaf)
    # What belongs to a parameter has its name behind some other: opt_state/1/mu/head/output/kernel.
    of = next((p for p in longest if name == p or name.endswith(f'/{p}')), None)
    spec, its_shape = specs.get(of, (P(), ()))
    return NamedSharding(mesh, spec if shape == its_shape else P())

  placed = jax.tree_util.tree_map_with_path(place, tree)
  if not hasattr(tree, 'carry'):
    return placed
  return placed._replace(carry=jax.tree.map(lambda _: NamedSharding(mesh, P(BATCH)), tree.carry))


def parameter_specs(mesh: jax.sharding.Mesh, rules: tuple, params) -> dict:
  """{name: (PartitionSpec, shape)}"""
  names = flat(params)
  written = []  # (regex, (axes, whether the rule is the user's))
  for rule in rules:
    if isinstance(rule, str):
      ready = RULES[one_of('parallel.rules', rule, RULES)]
      written += [
        (regex, (axes, False))
        for regex, axes in ready
        if any(re.fullmatch(regex, name) for name in names)
      ]
    else:
      regex, axes = _checked(rule)
      written.append((regex, (axes, True)))
  chosen = jax.tree.structure(params).flatten_up_to(by_rules(params, written, 'parallel.rules'))
  return {
    name: (_spec(mesh, name, leaf.shape, *rule), leaf.shape)
    for (name, leaf), rule in zip(names.items(), chosen)
  }


def _checked(rule) -> tuple:
  known = {*AXES, '', *WHOLE}
  if (
    len(rule) != 2
    or not isinstance(rule[1], tuple)
    or not known.issuperset(rule[1])
    or ('whole' in rule[1] and rule[1] != WHOLE)
  ):
    raise UserError(
      f"parallel.rules: {rule!r} is no rule. Write ('head/.*/kernel', ('', 'tensor')) with the axes {AXES}, or the name of a set: {sorted(RULES)}."
    )
  return rule


def _spec(mesh, name, shape, axes, by_user) -> P:
  if axes == WHOLE:
    return P()
  if len(axes) > len(shape):
    if by_user:
      raise UserError(f'parallel.rules: {axes} for {name}, which has the dimensions {shape}.')
    axes = ()  # the key of a recurrent decoder has no heads: divided, each step of its loop would wait for other devices
  spec = [''] * (len(shape) - len(axes)) + list(axes)
  for i, (axis, size) in enumerate(zip(spec, shape)):
    if axis and (size % mesh.shape[axis] or mesh.shape[axis] == 1):
      if by_user and size % mesh.shape[axis]:
        raise UserError(
          f'parallel.rules: {name} has the dimensions {shape}: {axis}={mesh.shape[axis]} does not divide {size}.'
        )
      spec[i] = ''
  free = [
    i
    for i, axis in enumerate(spec)
    if not axis and shape[i] % mesh.shape['fsdp'] == 0 and mesh.shape['fsdp'] > 1
  ]
  if 'fsdp' not in spec and free and len(shape) > 1:
    spec[max(free, key=lambda i: shape[i])] = 'fsdp'
  return P(*(axis or None for axis in spec))


def bytes_per_device(tree, placed) -> int:
  """What one device holds of a tree of arrays or shapes, under a tree of shardings like it."""
  held = jax.tree.map(
    lambda leaf, sharding: math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize,
    tree,
    placed,
  )
  return sum(jax.tree.leaves(held))
