"""Ops by name: `parse_ops(('decode', 'resize(64)', 'flip'))` gives the callables that train, evaluate and
predict share.

An op is `op(example: dict, rng: np.random.Generator) -> dict`; it never changes the example it was given.
"""

import ast
import functools
import inspect
import typing

from mmlm.data.transforms import audio_ops, image
from mmlm.utils.choices import nearest
from mmlm.utils.errors import UserError

OPS = image.OPS | audio_ops.OPS


def parse_ops(texts) -> list:
  """Op strings such as 'resize(64)' to callables; UserError names the string that is wrong and what is right."""
  return [_parse(text) for text in texts]


def apply_ops(ops, example: dict, rng) -> dict:
  """The example after all ops; an error names the example."""
  name = example.get('id')
  try:
    for op in ops:
      example = op(example, rng)
    return example
  except UserError as error:
    raise UserError(f'Example {name!r}: {error}') from error
  except Exception as error:
    error.add_note(f'This was in the example {name!r}.')
    raise


def _parse(text):
  """'name' or 'name(literals)' to the op with its options bound."""
  try:
    call = ast.parse(
      text.strip() if '(' in text else f'{text.strip()}()',
      mode='eval',
    ).body
    name = call.func.id
    args = [ast.literal_eval(arg) for arg in call.args]
    kwargs = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
  except (SyntaxError, ValueError, AttributeError):
    raise UserError(f"Can't read the op {text!r}: write it like 'flip' or 'resize(64)'.") from None
  if name not in OPS:
    raise UserError(f'Unknown op {text!r}. Nearest: {nearest(name, OPS)!r} of {sorted(OPS)}.')
  _, _, *parameters = inspect.signature(
    OPS[name]
  ).parameters.values()  # all but the example and the generator
  signature = inspect.Signature(parameters)
  try:
    options = signature.bind(*args, **kwargs).arguments
    for key, value in options.items():
      if not _fits(value, signature.parameters[key].annotation):
        raise TypeError(f'{key} is {value!r}')
  except TypeError as error:
    raise UserError(f'Op {text!r}: {error}. It is {name}{signature}.') from None
  return functools.partial(OPS[name], **options)


def _fits(value, kind) -> bool:
  """Whether a value is of the kind that an annotation names: a type, a Literal, or a union of these."""
  if kinds := typing.get_args(kind):
    return any(_fits(value, each) for each in kinds)
  if isinstance(kind, type):
    return isinstance(value, kind)
  return value == kind
