"""Every fusion: absent modalities change nothing, present ones do, in any subset and order.

Axes: B batch (each example has another subset of the modalities), S sequence, D width.
"""

import functools
import itertools

import jax
import numpy as np
import pytest
from model_helpers import initial, normal

from mmlm.models.attention import MultiHeadAttention
from mmlm.models.fusion import FUSIONS
from mmlm.models.sequence import Sequence
from mmlm.utils.pytree import flat

D = 8
LENGTHS = {'text': 4, 'image': 3, 'audio': 2}
# [B, 3]: the first example has all modalities, the last none.
PRESENT = np.array(list(itertools.product([True, False], repeat=3)))
ENRICHED = ('gated', 'selective', 'adaptation_gate')  # the memory is the text, and empty without it
VECTORS = ('late', 'tensor', 'low_rank')  # the memory is one place
close = functools.partial(np.testing.assert_allclose, atol=1e-5, rtol=1e-5)
every_fusion = pytest.mark.parametrize('name', FUSIONS)


def sequences(seed=0, names=tuple(LENGTHS)):
  result = {}
  for name in names:
    result[name] = Sequence(normal(seed + len(name), 8, LENGTHS[name], D), _mask(name))
  return result


def _mask(name):
  mask = np.repeat(PRESENT[:, [list(LENGTHS).index(name)]], LENGTHS[name], 1)
  mask[0, -1] = False  # present, with padding
  return mask


@functools.cache
def fusion(name, names=tuple(LENGTHS)):
  module = FUSIONS[name](D)
  params = {}
  # These return a single modality unchanged.
  if len(names) > 1 or name not in ('concatenation', 'gated', 'selective'):
    params = initial(module, sequences(names=names))
  return params, jax.jit(lambda params, inputs: module.apply({'params': params}, inputs))


@every_fusion
@pytest.mark.parametrize('modality', LENGTHS)
def test_masked_values_change_nothing(name, modality):
  """Not even masked positions of the memory: a decoder attends to all of an empty memory."""
  params, run = fusion(name)
  inputs = sequences()
  values, mask = inputs[modality]
  garbage = Sequence(np.where(mask[..., None], values, 1e3), mask)
  # Fusions that enrich the text leave its padding as it is.
  positions = slice(None, 3) if name in ENRICHED else slice(None)
  outputs = zip(run(params, inputs), run(params, inputs | {modality: garbage}))
  for before, after in outputs:
    close(before[1:], after[1:])  # absent modalities
    close(before[:1, positions], after[:1, positions])  # padding


@every_fusion
@pytest.mark.parametrize('modality', LENGTHS)
def test_present_values_change_the_memory_of_their_example_alone(name, modality):
  params, run = fusion(name)
  inputs = sequences()
  values, mask = inputs[modality]
  out = run(params, inputs)
  changed = run(params, inputs | {modality: Sequence(-values, mask)})
  present = PRESENT[:, list(LENGTHS).index(modality)]
  if name in ENRICHED:
    present = present & PRESENT[:, 0]
  difference = np.where(out.mask[..., None], out.values - changed.values, 0)
  moved = np.abs(difference).max((1, 2))
  assert np.all(moved[present] > 1e-3)
  assert np.all(moved[~present] < 1e-5)
  np.testing.assert_array_equal(out.mask, changed.mask)


@every_fusion
def test_the_memory_is_finite_and_masked_where_nothing_is_present(name):
  params, run = fusion(name)
  out = run(params, sequences())
  assert out.values.shape == (*out.mask.shape, D)
  assert np.all(np.isfinite(out.values))
  expected = PRESENT[:, 0] if name in ENRICHED else PRESENT.any(1)
  np.testing.assert_array_equal(out.mask.any(1)[:-1], expected[:-1])
  assert name in VECTORS or not out.mask[0].all()  # padding stays padding


# The others have weights for each combination of modalities.
@pytest.mark.parametrize('name', sorted(FUSIONS.keys() - {*VECTORS, 'cross_attention'}))
def test_a_modality_that_no_example_has_can_be_left_out(name):
  """The same parameters, without its positions."""
  params, run = fusion(name)
  inputs = sequences()
  silent = inputs | {'audio': Sequence(inputs['audio'].values, np.zeros_like(inputs['audio'].mask))}
  whole = run(params, silent)
  without = run(params, {key: inputs[key] for key in ('text', 'image')})
  for b in range(6):  # the last two have nothing, or audio alone
    close(whole.values[b][whole.mask[b]], without.values[b][without.mask[b]])


@pytest.mark.parametrize('name', ['gated', 'selective', 'resampler'])
def test_the_main_modality_alone_is_not_changed(name):
  params, run = fusion(name)
  inputs = sequences()
  # the example that has the text alone
  out = run(params, inputs)
  alone = 3
  assert PRESENT[alone].tolist() == [True, False, False]
  close(out.values[alone, :4], inputs['text'].values[alone])
  assert out.mask[alone].sum() == 4


@every_fusion
@pytest.mark.parametrize(
  'names', [('text',), ('image',), ('audio', 'image'), ('image', 'text')], ids='+'.join
)
def test_any_subset_of_modalities_works_in_any_order(name, names):
  params, run = fusion(name, names)
  inputs = sequences(names=names)
  out = run(params, inputs)
  assert np.all(np.isfinite(out.values)) and out.mask[0].any()
  # Not compiled: jax sorts the keys of the inputs of a compiled function.
  for order in itertools.permutations(names):
    ordered = {modality: inputs[modality] for modality in order}
    result = FUSIONS[name](D).apply({'params': params}, ordered)
    jax.tree.map(close, out, result)


@every_fusion
def test_gradients_reach_every_parameter(name):
  params, run = fusion(name)
  inputs = {}
  for modality, (values, mask) in sequences().items():
    inputs[modality] = Sequence(values, np.ones_like(mask))

  @jax.jit
  @jax.grad
  def gradient(params):
    return (run(params, inputs).values ** 3).sum()

  for path, value in flat(gradient(params)).items():
    if not path.endswith('key/bias'):  # adds the same to all logits
      assert np.abs(value).max() > 1e-4, path


@pytest.mark.parametrize('name', ['gated', 'selective'])
def test_gates_follow_their_equations(name):
  """Gated adds the gated mean; selective moves from the text towards its attention."""
  inputs = sequences(names=('text', 'image'))
  params, apply = fusion(name, ('text', 'image'))
  text = inputs['text']
  image = inputs['image']

  def dense(part, x):
    return x @ params[f'image_{part}']['kernel'] + params[f'image_{part}']['bias']

  def gate(other):
    return jax.nn.sigmoid(dense('gate_main', text.values) + dense('gate_other', other))

  if name == 'gated':
    mean = dense('projection', _mean(image)[:, None])
    expected = text.values + gate(mean) * mean
  else:
    attention = {'params': params['image_attention']}
    attended = MultiHeadAttention(4).apply(attention, text.values, image.values, image.mask)
    expected = (1 - gate(attended)) * text.values + gate(attended) * attended
  both = (PRESENT[:, 0] & PRESENT[:, 1])[:, None] & text.mask
  close(apply(params, inputs).values[both], expected[both])


def _mean(sequence):
  values, mask = sequence
  mask = mask[..., None]
  return (values * mask).sum(1) / np.maximum(mask.sum(1), 1)


def _dense(params, x):
  return x @ params['kernel'] + params['bias']


def test_the_tensor_fusion_is_an_outer_product():
  inputs = sequences()
  params, apply = fusion('tensor')
  parts = []
  for name in sorted(inputs):
    parts.append(_dense(params[f'{name}_projection'], _mean(inputs[name]))[0])
  product = functools.reduce(np.multiply.outer, [np.concatenate([[1], part]) for part in parts])
  assert product.shape == (9, 9, 9)
  close(apply(params, inputs).values[0, 0], _dense(params['joint'], product.reshape(-1)))


def test_the_low_rank_fusion_is_a_tensor_fusion_whose_weights_are_sums_of_products():
  inputs = sequences(names=('text', 'image'))
  params, apply = fusion('low_rank', ('text', 'image'))
  ones = {name: np.concatenate([[1], _mean(inputs[name])[0]]) for name in inputs}
  factors = {name: params[f'{name}_factors']['kernel'] for name in inputs}  # [1 + D, rank, D]
  weights = np.einsum('ird,jrd,r->ijd', factors['text'], factors['image'], params['weights'])
  close(
    apply(params, inputs).values[0, 0],
    np.einsum('i,j,ijd->d', ones['text'], ones['image'], weights) + params['bias'],
  )


def test_the_adaptation_gate_moves_the_text_no_further_than_it_is_long():
  inputs = sequences(names=('text', 'image'))
  params, apply = fusion('adaptation_gate', ('text', 'image'))
  text = inputs['text'].values[0]
  mean = np.broadcast_to(_mean(inputs['image'])[0], (4, D))
  gate = np.maximum(_dense(params['image_gate'], np.concatenate([text, mean], -1)), 0)
  moved = gate * _dense(params['image_displacement'], mean)

  def length(x):
    return np.linalg.norm(x, axis=-1, keepdims=True)

  moved = moved * np.minimum(length(text) / length(moved), 1)
  x = text + moved
  x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
  expected = x * params['norm']['scale'] + params['norm']['bias']
  mask = inputs['text'].mask[0]
  close(apply(params, inputs).values[0][mask], expected[mask])
