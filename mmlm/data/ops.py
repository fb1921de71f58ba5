"""Ops by name: `parse_ops(('decode', 'resize(64)', 'flip'))` gives the callables that train, evaluate and
predict share.

An op is `op(example: dict, rng: np.random.Generator) -> dict`; it never changes the example it was given.
"""

import ast
import difflib
import inspect

from mmlm.data import image
from mmlm.errors import UserError

OPS = dict(image.OPS)


def parse_ops(texts) -> list:
  """Op strings such as 'resize(64)' to callables; UserError names the string that is wrong and the nearest
  valid name.
  """
  return [_parse(text) for text in texts]


def apply_ops(ops, example: dict, rng) -> dict:
  for op in ops:
    example = op(example, rng)
  return example


def _parse(text):
  name, args, kwargs = _call(text)
  if name not in OPS:
    near = difflib.get_close_matches(name, OPS, 1)
    hint = f' Did you mean {near[0]!r}?' if near else ''
    raise UserError(f'Unknown op {text!r}.{hint} There are: {", ".join(sorted(OPS))}.')
  factory = OPS[name]
  signature = inspect.signature(factory)
  try:
    for key, value in signature.bind(*args, **kwargs).arguments.items():
      if not isinstance(value, signature.parameters[key].annotation):
        raise TypeError(f'{key} is {value!r}')
    return factory(*args, **kwargs)
  except (TypeError, ValueError) as error:
    raise UserError(f'Op {text!r}: {error}. It is {name}{signature}.') from None


def _call(text):
  """'name' or 'name(literals)' to name, arguments and keyword arguments."""
  try:
    match ast.parse(text.strip(), mode='eval').body:
      case ast.Name(name):
        return name, [], {}
      case ast.Call(ast.Name(name), args, keywords):
        return name, [ast.literal_eval(a) for a in args], {k.arg: ast.literal_eval(k.value) for k in keywords}
  except (SyntaxError, ValueError):
    pass
  raise UserError(f"Can't read the op {text!r}: write it like 'flip' or 'resize(64)'.")
