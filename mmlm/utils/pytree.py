"""Parameters by path: names of leaves, ordered (regex, value) rules, readable differences.

A name is the path of a leaf joined by '/', for example `head/decoder/block_0/ffn/up/kernel`.
"""

import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from mmlm.utils.choices import nearest
from mmlm.utils.errors import UserError

Rules = Sequence[tuple[str, Any]]  # ordered (regex, value) pairs, matched with `re.fullmatch`
SHOWN = 10  # differences in a message


def name_of(path: tuple) -> str:
  """Returns the name of a leaf at a key path of jax."""
  return jax.tree_util.keystr(path, simple=True, separator='/')


def flat(tree: Any) -> dict[str, Any]:
  """Returns {name: leaf} in the order of the tree."""
  return {name_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def by_rules(tree: Any, rules: Rules, what: str) -> Any:
  """Returns a tree with the values of the first rule that matches each whole name.

  Args:
    what: what the rules decide, for messages.

  Raises:
    UserError: a leaf that no rule covers, or a rule that covers no leaf.
  """
  names = list(flat(tree))
  for pattern, _ in rules:
    _check_rule(pattern, names, what)
  values = []
  uncovered = []
  for name in names:
    matching = [value for pattern, value in rules if re.fullmatch(pattern, name)]
    if matching:
      values.append(matching[0])
    else:
      uncovered.append(name)
  if uncovered:
    raise UserError(
      f'{what}: no rule covers {", ".join(uncovered[:5])} ({len(uncovered)} in all). '
      "Add ('.*', value)."
    )
  return jax.tree.unflatten(jax.tree.structure(tree), values)


def _check_rule(pattern: str, names: list[str], what: str) -> None:
  try:
    covered = any(re.fullmatch(pattern, name) for name in names)
  except re.error as error:
    raise UserError(f'{what}: {pattern!r} is not a regular expression ({error}).') from None
  if not covered:
    raise UserError(
      f'{what}: the rule {pattern!r} covers no parameter. '
      f'Parameters are named like {nearest(pattern, names)!r}.'
    )


def renamed(tree: Any, rules: Rules, what: str) -> dict[str, str]:
  """Returns {name: name in another tree} of the leaves that rules choose.

  The value of a rule is True for the same name, False for none, or that name as a template with
  \\1, \\2 for the groups of the regex.
  """
  numbered = [(pattern, number) for number, (pattern, _) in enumerate(rules)]
  names = {}
  for name, number in flat(by_rules(tree, numbered, what)).items():
    pattern, value = rules[number]
    match = re.fullmatch(pattern, name)
    assert match is not None  # the rule covers it
    if isinstance(value, str):
      try:
        names[name] = match.expand(value)
      except (re.error, IndexError) as error:
        raise UserError(f'{what}: {value!r} does not go with {pattern!r} ({error}).') from None
    elif value:
      names[name] = name
  return names


def graft(tree: Any, source: Any, rules: Rules, what: str, source_name: str) -> Any:
  """Returns `tree` with the leaves of `source` that the rules choose (see `renamed`).

  Raises:
    UserError: a chosen leaf is not in `source`, or has another shape or type; errors of `by_rules`.
  """
  names = renamed(tree, rules, what)
  source_leaves = flat(source)
  leaves = flat(tree)
  there = {}
  here = {}
  for name, name_there in names.items():
    label = name if name == name_there else f'{name_there} -> {name}'
    here[label] = leaves[name]
    if name_there in source_leaves:
      there[label] = source_leaves[name_there]
  unfit = misfits(there, here)
  if unfit:
    title = (
      f'{what}: {len(unfit)} parameters of {source_name} do not fit (there -> here). '
      "Leave them out by a rule before the others, such as ('fusion/.*', False):"
    )
    raise UserError('\n  '.join([title, *unfit[:SHOWN]]))

  def chosen(path: tuple, leaf: Any) -> Any:
    name = name_of(path)
    if name in names:
      return source_leaves[names[name]]
    return leaf

  return jax.tree_util.tree_map_with_path(chosen, tree)


def misfits(there: dict[str, Any], here: dict[str, Any]) -> list[str]:
  """Returns lines `name: there -> here` for arrays that differ in shape or type, or are absent.

  Args:
    there: {name: leaf} of one tree, and `here` of the other.
  """
  names = [*here, *(name for name in there if name not in here)]
  lines = []
  for name in names:
    a = there.get(name)
    b = here.get(name)
    if _shape(a) != _shape(b):
      lines.append(f'{name}: {_shape(a)} -> {_shape(b)}')
    elif a is not None and b is not None and np.dtype(a.dtype) != np.dtype(b.dtype):
      lines.append(f'{name}: {np.dtype(a.dtype).name} -> {np.dtype(b.dtype).name}')
  return lines


def _shape(leaf: Any) -> tuple[int, ...] | str:
  if leaf is None:
    return 'absent'
  return tuple(leaf.shape)


def differences(left: dict, right: dict) -> list[str]:
  """Returns lines `key: left -> right` for the leaves in which two nested dicts differ."""
  a = flatten_dict(left, sep='.')
  b = flatten_dict(right, sep='.')
  lines = []
  for key in sorted(a.keys() | b.keys()):
    old = a.get(key, '(absent)')
    new = b.get(key, '(absent)')
    if old != new:
      lines.append(f'{key}: {old!r} -> {new!r}')
  return lines


def count(tree: Any) -> int:
  """Returns the number of values in all leaves."""
  return sum(leaf.size for leaf in jax.tree.leaves(tree))
