"""Transforms by name, shared by training, evaluation and prediction.

`parse_ops(('decode', 'resize(64)', 'flip'))` gives the transforms that a config names. A new one is
a function and one line in the dict of its module.
"""

import ast
import inspect
import typing
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from mmlm.data.transforms.audio_ops import AUDIO_TRANSFORMS
from mmlm.data.transforms.image import IMAGE_TRANSFORMS
from mmlm.data.transforms.transform import ConfiguredTransform, Example, Transform
from mmlm.utils.choices import nearest
from mmlm.utils.errors import UserError

TRANSFORMS: dict[str, Transform] = IMAGE_TRANSFORMS | AUDIO_TRANSFORMS
# A configured transform, or any function of its form
Op = Callable[[Example, np.random.Generator], Example]


def parse_ops(texts: Iterable[str]) -> list[ConfiguredTransform]:
  """Parses texts such as 'resize(64)'.

  Raises:
    UserError: the text that is wrong, and what is right.
  """
  return [_parse(text) for text in texts]


def apply_ops(
  ops: Sequence[Op],
  example: Example,
  rng: np.random.Generator,
) -> Example:
  """Returns the example after all transforms; an error names the example."""
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


def _parse(text: str) -> ConfiguredTransform:
  """Parses 'name' or 'name(literals)'."""
  name, args, kwargs = _parse_call(text)
  if name not in TRANSFORMS:
    raise UserError(
      f'Unknown op {text!r}. Nearest: {nearest(name, TRANSFORMS)!r} of {sorted(TRANSFORMS)}.'
    )
  transform = TRANSFORMS[name]
  # Without the value that is changed and the generator
  _, _, *parameters = inspect.signature(transform.change).parameters.values()
  signature = inspect.Signature(parameters)
  try:
    options = signature.bind(*args, **kwargs).arguments
    for key, value in options.items():
      if not _fits(value, signature.parameters[key].annotation):
        raise TypeError(f'{key} is {value!r}')
  except TypeError as error:
    raise UserError(f'Op {text!r}: {error}. It is {name}{signature}.') from None
  return ConfiguredTransform(transform, options)


def _parse_call(text: str) -> tuple[str, list, dict[str, Any]]:
  """Returns the name and the arguments of a call that is written as in Python."""
  call_text = text.strip() if '(' in text else f'{text.strip()}()'
  try:
    call: Any = ast.parse(call_text, mode='eval').body
    name = call.func.id
    args = [ast.literal_eval(arg) for arg in call.args]
    kwargs = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
  except (SyntaxError, ValueError, AttributeError):
    raise UserError(f"Can't read the op {text!r}: write it like 'flip' or 'resize(64)'.") from None
  return name, args, kwargs


def _fits(value: Any, kind: Any) -> bool:
  """Returns whether a value has the annotated type: a type, a Literal, or a union of these."""
  if kinds := typing.get_args(kind):
    return any(_fits(value, each) for each in kinds)
  if isinstance(kind, type):
    return isinstance(value, kind)
  return value == kind
