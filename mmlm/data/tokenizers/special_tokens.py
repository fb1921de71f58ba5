"""Ids of the special tokens of a vocabulary."""

import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class SpecialTokens:
  """Ids of the special tokens; the defaults are those of the tokenizers that are trained here.

  Hashable, so that a model can hold it as a static field. A foreign vocabulary keeps its own ids:
  GPT-2, for example, has one special token, which begins texts, ends them, and fills batches.
  """

  pad_id: int = 0  # fills batches, always masked; the blank of CTC
  bos_id: int = 1  # read before the first token of a text
  eos_ids: tuple[int, ...] = (2,)  # any of them ends a text; targets are trained with the first
  unk_id: int | None = 3  # stands for text outside the vocabulary; None where nothing is outside

  @property
  def eos_id(self) -> int:
    """Returns the token that targets end with."""
    return self.eos_ids[0]

  @property
  def distinct(self) -> tuple[int, ...]:
    """Returns the different ids in increasing order."""
    ids = {self.pad_id, self.bos_id, *self.eos_ids, self.unk_id}
    return tuple(sorted(ids - {None}))

  def is_unknown(self, tokens) -> np.ndarray:
    """Returns bools of the shape of `tokens`: where the unknown token stands."""
    if self.unk_id is None:
      return np.zeros(np.shape(tokens), bool)
    return np.asarray(tokens) == self.unk_id

  def to_dict(self) -> dict[str, Any]:
    return dataclasses.asdict(self)

  @classmethod
  def from_dict(cls, ids: dict[str, Any]) -> 'SpecialTokens':
    """Builds from what `to_dict` gave, from JSON too."""
    if 'eos_ids' in ids:
      ids = ids | {'eos_ids': tuple(ids['eos_ids'])}
    return cls(**ids)


DEFAULT_SPECIAL_TOKENS = SpecialTokens()
