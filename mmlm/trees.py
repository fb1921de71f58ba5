"""Parameters by path: leaf names, ordered (regex, value) rules, readable differences.

A name is the path of a leaf joined by '/', for example `head/decoder/block_0/ffn/up/kernel`.
"""

import difflib
import re

import jax

from mmlm.errors import UserError


def name_of(path) -> str:
  return '/'.join(str(getattr(key, 'key', getattr(key, 'name', getattr(key, 'idx', key)))) for key in path)


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
      near = nearest(pattern, names)
      raise UserError(f'{what}: the rule {pattern!r} covers no parameter. Parameters are named like {near!r}.')
  missing = [name for name in names if not any(re.fullmatch(pattern, name) for pattern, _ in rules)]
  if missing:
    raise UserError(f"{what}: no rule covers {', '.join(missing[:5])} ({len(missing)} in all). Add ('.*', value).")

  def value(path, _):
    return next(value for pattern, value in rules if re.fullmatch(pattern, name_of(path)))

  return jax.tree_util.tree_map_with_path(value, tree)


def nearest(name: str, names) -> str:
  """The member of `names` that looks most like `name`."""
  names = list(map(str, names))
  return (difflib.get_close_matches(name, names, n=1, cutoff=0.0) or [''])[0]


def differences(left: dict, right: dict, prefix: str = '') -> list[str]:
  """Lines `key: left -> right` for every leaf in which two nested dicts differ."""
  lines = []
  for key in sorted(set(left) | set(right)):
    a, b = left.get(key, '(absent)'), right.get(key, '(absent)')
    if isinstance(a, dict) and isinstance(b, dict):
      lines += differences(a, b, f'{prefix}{key}.')
    elif a != b:
      lines.append(f'{prefix}{key}: {a!r} -> {b!r}')
  return lines


def count(tree) -> int:
  """Number of values in all leaves."""
  return sum(leaf.size for leaf in jax.tree.leaves(tree))
