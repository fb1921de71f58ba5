"""Pretrained models: FAMILIES maps the `family` of an encoder or a head class to its loaders.

A new family is one file in this folder and one line in FAMILIES.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Protocol

from mmlm.data.tokenizers.tokenizer import Tokenizer
from mmlm.pretrained.bert import load_bert, load_wordpiece
from mmlm.pretrained.efficientnet import load_efficientnet_lite0
from mmlm.pretrained.gpt2 import load_gpt2, load_gpt2_tokenizer
from mmlm.pretrained.whisper import load_encoder
from mmlm.utils.errors import UserError


class HasFamily(Protocol):
  """An encoder or a head class."""

  family: ClassVar[str]


@dataclasses.dataclass(frozen=True)
class Family:
  """How a family of pretrained models is loaded; `name` is a folder or an installed package.

  Attributes:
    load_params: name -> parameters of the encoder without its projection, of the head, or of the
      backbone of an encoder that has one; nested dicts of float32 arrays, named as the module's. ''
      is the default name of a family that has one.
    tokenizer_kind: of configs (`tokenizer.kind`); '' for a family without a text tokenizer.
    load_tokenizer: name -> tokenizer.
  """

  load_params: Callable[[str], dict[str, Any]]
  tokenizer_kind: str = ''
  load_tokenizer: Callable[[str], Tokenizer] | None = None


FAMILIES = {
  'bert': Family(load_bert, 'wordpiece', load_wordpiece),
  'gpt2': Family(load_gpt2, 'gpt2', load_gpt2_tokenizer),
  'whisper': Family(load_encoder),
  'efficientnet_lite0': Family(load_efficientnet_lite0),
}


def family_of(part: type[HasFamily]) -> Family:
  """Returns the family that an encoder or a head class states.

  Raises:
    UserError: the class states none, or one that is not in FAMILIES.
  """
  if not part.family:
    raise UserError(f'{part.__name__}: there are no pretrained weights for it (it has no family).')
  if part.family not in FAMILIES:
    raise UserError(
      f'{part.__name__}: its family {part.family!r} is not in FAMILIES of '
      f'mmlm/pretrained/__init__.py, which has {sorted(FAMILIES)}. Add a line there.'
    )
  return FAMILIES[part.family]


def tokenizer_loaders() -> dict[str, Callable[[str], Tokenizer]]:
  """Returns {tokenizer.kind: name -> tokenizer} of the families that bring one."""
  loaders = {}
  for family in FAMILIES.values():
    if family.load_tokenizer is not None:
      loaders[family.tokenizer_kind] = family.load_tokenizer
  return loaders
