"""Every fusion: what is absent changes nothing, what is present does, any subset works, in any order.

Axes: B batch (here every subset of the modalities is present in one example), S sequence, D width.
"""

import functools
import itertools

import jax
import numpy as np
import pytest
from test_models import initial, normal

from mmlm.models.attention import MultiHeadAttention
from mmlm.models.fusion import FUSIONS
from mmlm.models.sequence import Sequence
from mmlm.utils.pytree import flat

D = 8
LENGTHS = {'text': 4, 'image': 3, 'audio': 2}
PRESENT = np.array(
  list(itertools.product([True, False], repeat=3))
)  # [B, 3], the first example has all, the last none
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
  several = len(names) > 1 or name not in (
    'concatenation',
    'gated',
    'selective',
  )  # these give one modality back as it is
  if several:
    params = initial(module, sequences(names=names))
  else:
    params = {}
  return params, jax.jit(lambda params, inputs: module.apply({'params': params}, inputs))


@every_fusion
@pytest.mark.parametrize('modality', LENGTHS)
def test_what_is_absent_changes_nothing_and_what_is_present_does(name, modality):
  """A decoder looks at all places of a memory that is all mask, so what stands there counts too."""
  params, run = fusion(name)
  inputs = sequences()
  values, mask = inputs[modality]
  out = run(params, inputs)
  hidden = run(params, inputs | {modality: Sequence(np.where(mask[..., None], values, 1e3), mask)})
  for before, after in zip(out, hidden):
    if name not in ENRICHED:
      places = slice(None)
    else:
      places = slice(None, 3)
    close(before[1:], after[1:])  # absent
    close(before[:1, places], after[:1, places])  # padding
  shown = run(params, inputs | {modality: Sequence(-values, mask)})
  present = PRESENT[:, list(LENGTHS).index(modality)] & (PRESENT[:, 0] | (name not in ENRICHED))
  moved = np.abs(np.where(out.mask[..., None], out.values - shown.values, 0)).max((1, 2))
  assert np.all(moved[present] > 1e-3) and np.all(moved[~present] < 1e-5)
  assert np.array_equal(out.mask, shown.mask)


@every_fusion
def test_masks_tell_what_is_there_and_values_are_finite(name):
  params, run = fusion(name)
  out = run(params, sequences())
  assert out.values.shape == (*out.mask.shape, D) and np.all(np.isfinite(out.values))
  if name in ENRICHED:
    some = PRESENT[:, 0]
  else:
    some = PRESENT.any(1)
  assert np.array_equal(out.mask.any(1)[:-1], some[:-1])
  assert name in VECTORS or not out.mask[0].all()  # padding stays padding


@pytest.mark.parametrize(
  'name', sorted(FUSIONS.keys() - {*VECTORS, 'cross_attention'})
)  # these have weights for each combination
def test_what_no_example_has_may_as_well_not_be_asked_for(name):
  """The same parameters, without the place where it would stand."""
  params, run = fusion(name)
  inputs = sequences()
  silent = inputs | {'audio': Sequence(inputs['audio'].values, np.zeros_like(inputs['audio'].mask))}
  whole = run(params, silent)
  without = run(params, {key: inputs[key] for key in ('text', 'image')})
  for b in range(6):  # the last two have nothing, or audio alone
    close(whole.values[b][whole.mask[b]], without.values[b][without.mask[b]])


@pytest.mark.parametrize('name', ['gated', 'selective', 'resampler'])
def test_the_main_modality_alone_stays_as_it_is(name):
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
  for order in itertools.permutations(
    names
  ):  # not compiled: jax sorts the keys of what it compiles
    found = FUSIONS[name](D).apply(
      {'params': params}, {modality: inputs[modality] for modality in order}
    )
    jax.tree.map(close, out, found)


@every_fusion
def test_gradients_reach_every_parameter(name):
  params, run = fusion(name)
  inputs = {
    modality: Sequence(values, np.ones_like(mask))
    for modality, (values, mask) in sequences().items()
  }

  @jax.jit
  @jax.grad
  def gradient(params):
    return (run(params, inputs).values ** 3).sum()

  for path, value in flat(gradient(params)).items():
    assert np.abs(value).max() > 1e-4 or path.endswith('key/bias'), (
      path
    )  # it moves all scores alike


@pytest.mark.parametrize('name', ['gated', 'selective'])
def test_the_equations_of_gates_by_hand(name):
  """Gated adds the gated mean; selective moves from the text towards what it attends to."""
  inputs = sequences(names=('text', 'image'))
  params, apply = fusion(name, ('text', 'image'))
  text = inputs['text']
  image = inputs['image']

  def dense(part, x):
    return x @ params[f'image_{part}']['kernel'] + params[f'image_{part}']['bias']

  if name == 'gated':
    kept = image.mask[..., None]
    found = dense(
      'projection',
      (image.values * kept).sum(1, keepdims=True) / np.maximum(kept.sum(1, keepdims=True), 1),
    )
  else:
    found = MultiHeadAttention(4).apply(
      {'params': params['image_attention']}, text.values, image.values, image.mask
    )
  gate = jax.nn.sigmoid(dense('gate_main', text.values) + dense('gate_other', found))
  if name == 'gated':
    mixed = text.values + gate * found
  else:
    mixed = (1 - gate) * text.values + gate * found
  both = (PRESENT[:, 0] & PRESENT[:, 1])[:, None] & text.mask
  close(
    np.where(both[..., None], apply(params, inputs).values, 0), np.where(both[..., None], mixed, 0)
  )


def _mean(sequence):
  kept = sequence.mask[..., None]
  return (sequence.values * kept).sum(1) / np.maximum(kept.sum(1), 1)


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
  wanted = x * params['norm']['scale'] + params['norm']['bias']
  close(apply(params, inputs).values[0][inputs['text'].mask[0]], wanted[inputs['text'].mask[0]])
