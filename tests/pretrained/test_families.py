"""The families of pretrained models that encoders and heads state."""

import pytest

from mmlm.models.encoders import ENCODERS
from mmlm.models.heads import HEADS
from mmlm.pretrained import FAMILIES, family_of, tokenizer_loaders
from mmlm.utils.errors import UserError


def test_every_stated_family_can_be_loaded_and_every_loader_is_used():
  stated = {part.family for part in [*ENCODERS.values(), *HEADS.values()]} - {''}
  assert stated == set(FAMILIES)


def test_a_family_without_a_loader_is_named():
  class Clip:
    family = 'clip'

  with pytest.raises(UserError, match="Clip: its family 'clip' is not in FAMILIES"):
    family_of(Clip)
  with pytest.raises(UserError, match='there are no pretrained weights for it'):
    family_of(ENCODERS['text_cnn'])


def test_tokenizers_of_families_have_a_kind():
  assert set(tokenizer_loaders()) == {'wordpiece', 'gpt2'}
