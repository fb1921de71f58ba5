"""Parameters by path: leaf names, ordered (regex, value) rules, readable differences.

A name is the path of a leaf joined by '/', for example `head/decoder/block_0/ffn/up/kernel`.
"""

import re

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from mmlm.utils.choices import nearest
from mmlm.utils.errors import UserError


def name_of(path) -> str:
  return jax.tree_util.keystr(path, simple=True, separator='/')


def flat(tree) -> dict:
  """{name: leaf} in the tree's own order."""
  return {name_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def by_rules(tree, rules, what: str):
  """A tree like `tree` whose leaves are the values of the first rule that matches each whole name.

  Args:
    tree: any pytree.
    rules: ordered (regex, value) pairs, matched with `re.fullmatch`.
    what: what the rules decide, for the messages.

  Raises:
    UserError: a leaf that no rule covers, or a rule whose pattern covers no leaf at all.
  """
  names = list(flat(tree))
  for pattern, _ in rules:
    try:
      covered = any(re.fullmatch(pattern, name) for name in names)
    except re.error as error:
      raise UserError(f'{what}: {pattern!r} is not a regular expression ({error}).') from None
    if not covered:
      raise UserError(
        f'{what}: the rule {pattern!r} covers no parameter. Parameters are named like {nearest(pattern, names)!r}.'
      )
  missing = [name for name in names if not any(re.fullmatch(pattern, name) for pattern, _ in rules)]
  if missing:
    raise UserError(
      f"{what}: no rule covers {', '.join(missing[:5])} ({len(missing)} in all). Add ('.*', value)."
    )
  values = []
  for name in names:
    values.append(next(value for pattern, value in rules if re.fullmatch(pattern, name)))
  return jax.tree.unflatten(jax.tree.structure(tree), values)


def renamed(tree, rules, what: str) -> dict[str, str]:
  """{name: the name elsewhere} of the leaves whose first rule (regex, value) is True, the same name, or a text, that name with \\1, \\2 and
  so on for the groups of the regex.
  """
  numbered = [(pattern, number) for number, (pattern, _) in enumerate(rules)]
  found = {}
  for name, number in flat(by_rules(tree, numbered, what)).items():
    pattern, value = rules[number]
    if isinstance(value, str):
      try:
        found[name] = re.fullmatch(pattern, name).expand(value)
      except (re.error, IndexError) as error:
        raise UserError(f'{what}: {value!r} does not go with {pattern!r} ({error}).') from None
    elif value:
      found[name] = name
  return found


def graft(tree, other, rules, what: str, name: str):
  """`tree` with the leaves of `other` wherever the first rule of a name (see `renamed`) names one.

  Raises:
    UserError: a leaf that is wanted is not in `other`, which is called `name`, or has another shape or type; what `by_rules` raises.
  """
  wanted = renamed(tree, rules, what)
  found = flat(other)

  # By what the user would look for: a name here, after that of its place there where this is another.
  def told(leaf):
    if wanted[leaf] == leaf:
      return leaf
    return f'{wanted[leaf]} -> {leaf}'

  here = {told(leaf): mine for leaf, mine in flat(tree).items() if leaf in wanted}
  if bad := misfits(
    {told(leaf): found[theirs] for leaf, theirs in wanted.items() if theirs in found}, here
  ):
    raise UserError(
      '\n  '.join(
        [
          f'{what}: {len(bad)} parameters of {name} do not fit (there -> here). Leave them out by a rule before the others, '
          "such as ('fusion/.*', False):",
          *bad[:10],
        ]
      )
    )
  return jax.tree_util.tree_map_with_path(
    lambda path, mine: found[wanted[name_of(path)]] if name_of(path) in wanted else mine, tree
  )


def misfits(there: dict, here: dict) -> list[str]:
  """Lines `name: there -> here` for the arrays {name: leaf} of two trees that differ in shape or type, or stand in one of them alone."""

  def line(name):
    leaves = [side.get(name) for side in (there, here)]
    shapes = ['absent' if leaf is None else tuple(leaf.shape) for leaf in leaves]
    if shapes[0] != shapes[1]:
      pair = shapes
    else:
      pair = [np.dtype(leaf.dtype).name for leaf in leaves]
    if pair[0] != pair[1]:
      return f'{name}: {pair[0]} -> {pair[1]}'
    return ''

  return [*filter(None, map(line, [*here, *(name for name in there if name not in here)]))]


def differences(left: dict, right: dict) -> list[str]:
  """Lines `key: left -> right` for every leaf in which two nested dicts differ."""
  a = flatten_dict(left, sep='.')
  b = flatten_dict(right, sep='.')
  rows = []
  for key in sorted(a.keys() | b.keys()):
    rows.append((key, a.get(key, '(absent)'), b.get(key, '(absent)')))
  return [f'{key}: {old!r} -> {new!r}' for key, old, new in rows if old != new]


def count(tree) -> int:
  """Number of values in all leaves."""
  return sum(leaf.size for leaf in jax.tree.leaves(tree))
