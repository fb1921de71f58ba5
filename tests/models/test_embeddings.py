"""Embeddings of tokens, positions and picture patches."""

import jax
import numpy as np
import pytest
from model_helpers import apply_jitted, close, initial, normal

from mmlm.models.embeddings import (
  PatchEmbedding,
  Positions,
  TokenEmbedding,
  rotate,
  sinusoidal_table,
)
from mmlm.utils.errors import UserError

POSITIONS = np.array([0, 1, 2, 5, 30])


def test_rotary_embedding_multiplies_pairs_by_a_phase():
  """The pair (a, b) as a complex number times e^(i p theta) (Su et al. 2021, eq. 34)."""
  query = normal(0, 1, 5, 2, 8)
  phases = np.exp(1j * np.outer(POSITIONS, 10000 ** -(np.arange(4) / 4)))
  rotated = (query[..., :4] + 1j * query[..., 4:]) * phases[:, None]
  close(rotate(query, POSITIONS), np.concatenate([rotated.real, rotated.imag], -1))


def test_rotary_logits_depend_on_the_distance_alone():
  query = normal(0, 1, 5, 2, 8)
  key = normal(1, 1, 5, 2, 8)

  def logits(shift):
    positions = POSITIONS + shift
    return np.einsum('bthe,bshe->hts', rotate(query, positions), rotate(key, positions))

  close(logits(0), logits(17), atol=1e-4)
  unrotated = np.einsum('bthe,bshe->hts', query, key)
  assert np.abs(logits(0) - unrotated).max() > 0.1


def test_sinusoids_and_their_offset():
  table = sinusoidal_table(8, 4)
  close(table[0], [0, 0, 1, 1])
  close(table[3], [np.sin(3), np.sin(0.03), np.cos(3), np.cos(0.03)])
  x = normal(0, 1, 3, 4)
  close(Positions('sinusoidal', 8).apply({}, x, 2), x + table[2:5])


@pytest.mark.parametrize('kind', ['rotary', 'none'])
def test_rotary_and_no_positions_add_nothing(kind):
  x = normal(0, 1, 3, 4)
  out, variables = Positions(kind, 8).init_with_output(jax.random.key(0), x)
  assert not variables
  np.testing.assert_array_equal(out, x)


def test_an_unknown_kind_of_positions_is_an_error():
  with pytest.raises(UserError, match='lerned.*learned'):
    Positions('lerned', 8).init(jax.random.key(0), normal(0, 1, 3, 4))


def test_embeddings_and_logits_have_unit_size():
  module = TokenEmbedding(50, 64)
  tokens = np.arange(50)[None]
  x, variables = module.init_with_output(jax.random.key(0), tokens)
  table = variables['params']['table']
  close(x[0], table * 8)
  assert abs(float(x.std()) - 1) < 0.05
  close(module.apply(variables, x, method='logits'), x @ table.T)


def test_patches_are_projected_alone_in_reading_order():
  images = normal(0, 1, 9, 13, 3)  # incomplete patches at the right and below are cut off
  module = PatchEmbedding(4, 16)
  params = initial(module, images)
  out = apply_jitted(module, params, images)
  assert out.shape == (1, 6, 16)
  patches = []
  for y in (0, 4):
    for x in (0, 4, 8):
      patches.append(images[0, y : y + 4, x : x + 4].ravel())
  projection = params['projection']
  close(out[0], np.stack(patches) @ projection['kernel'] + projection['bias'])
