"""Where a model looks: the weights are those that it uses, of the right words and places, and the
page shows them.
"""

import base64
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from browser import browser, visit  # noqa: F401 fixtures
from program import done, read_jsonl
from test_reports import data_of
from test_trained_run import place, run  # noqa: F401 a tiny run of translation, fixtures

from mmlm import config as configs
from mmlm.data import batching
from mmlm.data.pipeline import stream
from mmlm.data.tokenizers.special_tokens import SpecialTokens
from mmlm.experiment.experiment import Experiment
from mmlm.models.attention import MultiHeadAttention, attention_weights
from mmlm.models.fusion import FUSIONS
from mmlm.models.heads import TransformerDecoder
from mmlm.models.heads.recurrent_decoder import RecurrentDecoder
from mmlm.models.sequence import Sequence
from mmlm.reports import attention_maps as attention
from mmlm.reports.attention_maps import AttentionReader, grid_of

BOS = SpecialTokens().bos_id


def test_weights_that_are_shown_are_those_that_attention_uses():
  rng = np.random.default_rng(0)
  x, memory = (jnp.asarray(rng.normal(size=(2, n, 8)), jnp.float32) for n in (3, 5))
  mask = jnp.asarray([[True] * 5, [True, True, True, False, False]])
  layer = MultiHeadAttention(4, 2)
  params = {'params': layer.init(jax.random.key(0), x, memory, mask)['params']}
  out, made = layer.apply(params, x, memory, mask, mutable=['intermediates'])
  (weights,) = made['intermediates']['weights']
  assert (
    weights.shape == (2, 4, 3, 5)
    and np.allclose(weights.sum(-1), 1)
    and (weights[1, :, :, 3:] == 0).all()
  )
  np.testing.assert_array_equal(out, layer.apply(params, x, memory, mask))
  values = jnp.repeat(
    jnp.einsum('bsd,dge->bgse', memory, params['params']['value']['kernel']), 2, 1
  )
  again = jnp.einsum('bhts,bhse->bthe', weights, values)  # biases start at zero
  np.testing.assert_allclose(
    jnp.einsum('bthe,hed->btd', again, params['params']['out']['kernel']), out, atol=1e-5
  )
  uniform = attention_weights(
    jnp.zeros((1, 2, 2, 4)), jnp.ones((1, 1, 4, 6)), jnp.arange(6)[None, None] < 3
  )
  np.testing.assert_allclose(uniform[..., :3], 1 / 3, rtol=1e-6)


@pytest.mark.parametrize(
  'head',
  [
    TransformerDecoder(8, layers=2, heads=2, vocab_size=11, max_length=9),
    TransformerDecoder(8, layers=2, heads=2, vocab_size=11, max_length=9, scan=True),
    RecurrentDecoder(8, 11, 2),
  ],
  ids=['transformer', 'scan', 'recurrent'],
)
def test_a_decoder_tells_its_weights_and_writes_the_same(head):
  memory = Sequence(
    jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 8)), jnp.float32),
    jnp.arange(5)[None] < jnp.asarray([[5], [3]]),
  )
  tokens = jnp.asarray([[BOS, 4, 5, 6], [BOS, 7, 8, 9]])
  params = {'params': head.init(jax.random.key(0), tokens, memory)['params']}
  logits, made = head.apply(params, tokens, memory, mutable=['intermediates'])
  np.testing.assert_array_equal(logits, head.apply(params, tokens, memory))
  layers = attention.attention_weights_of(made['intermediates'])
  assert len(layers) == (1 if isinstance(head, RecurrentDecoder) else 2)
  for weights in layers:
    assert (
      weights.shape == (2, 4, 5)
      and np.allclose(weights.sum(-1), 1, atol=1e-6)
      and (weights[1, :, 3:] == 0).all()
    )


def test_grids_have_the_shape_of_pictures():
  assert (
    grid_of(49, 224, 224) == (7, 7)
    and grid_of(12, 30, 40) == (3, 4)
    and grid_of(12, 40, 30) == (4, 3)
    and grid_of(7, 9, 9) in ((1, 7), (7, 1))
  )


@pytest.fixture(scope='module')
def look(run):  # noqa: F811
  experiment = Experiment.of_run(run, {})
  source = experiment.data.source('test')
  return experiment, [source[i] for i in range(8)], AttentionReader(experiment)


def test_a_closer_look_says_what_evaluation_wrote_and_attends_to_all_that_is_read(run, look):  # noqa: F811
  experiment, examples, closer = look
  found = closer(examples)
  (path,) = (run / 'predictions').glob('test-*[0-9].jsonl')
  written = {row['id']: row['hypothesis'] for row in read_jsonl(path)}
  assert f'test-{closer.step}' == path.stem

  def words(text):
    return text.replace('\N{REPLACEMENT CHARACTER}', '').strip()

  assert sum('attention' in told for told in found.values()) >= 4
  for example in examples:
    told = found[example['id']]
    assert ('attention' in told) == bool(
      words(told['hypothesis'])
    )  # a model that has hardly learned writes bytes of no letter
    assert told['hypothesis'] == written[example['id']] == told['n_best'][0][0] and len(
      told['n_best']
    ) == min(5, experiment.config.decoding.beam_size)
    if not (seen := told.get('attention')):
      continue
    assert ''.join(seen['words']).replace(' ', '') == told['hypothesis'].rstrip(
      '\N{REPLACEMENT CHARACTER}'
    ).replace(' ', '')
    assert ''.join(seen['text']['read']).replace(' ', '') == example['text'].replace(' ', '')
    for modality, places in (
      ('image', seen['image']['rows'] * seen['image']['columns']),
      ('text', len(seen['text']['read'])),
    ):
      values = [base64.b64decode(value) for value in seen[modality]['values']]
      assert len(values) == len(seen['words']) and all(
        len(value) == places and max(value) == 255 for value in values
      )
    shares = np.array([seen[modality]['shares'] for modality in ('image', 'text')])
    np.testing.assert_allclose(shares.sum(0), 1, atol=2e-3)  # two numbers of three digits


def test_a_look_is_of_the_example_itself_and_not_of_its_batch(look):
  _, examples, closer = look
  together = closer(examples)
  alone = closer(examples[3:4])
  name = examples[3]['id']
  assert alone[name]['hypothesis'] == together[name]['hypothesis']
  assert json.dumps(alone[name].get('attention', {}).get('text')) == json.dumps(
    together[name].get('attention', {}).get('text')
  )


@pytest.mark.parametrize(
  'fusion, ones',
  [
    ('concatenation', ['image', 'text']),
    ('selective', ['text']),
    ('bottleneck', []),
    ('resampler', []),
  ],
)
def test_what_each_fusion_keeps_is_found_in_its_memory(look, tmp_path, fusion, ones):
  """The modalities `ones` have all of the attention together, others leave some to what the fusion
  adds; a picture that is not there has none.
  """
  experiment, examples, _ = look
  config = configs.override(experiment.config, {'model.fusion.name': fusion})
  other = Experiment(config, experiment.folder)
  table = experiment.data.table('test', False)
  with stream(
    [batching.Batch(np.arange(2), experiment.data.buckets[-1], 2)],
    experiment.data.loader('test', table, 2),
    0,
    1,
  ) as batches:
    batch = next(batches)
  batch = {**batch, 'image_mask': np.array([True, False])}
  tokens = jnp.full((2, 3), 5)
  params = other.random_params(batch)
  kept = tuple(FUSIONS[fusion].keeps_positions(other.modalities, ''))
  assert kept == (('image', 'text') if fusion in ('concatenation', 'bottleneck') else ('text',))
  found = jax.jit(
    lambda params, batch: attention.decoder_attention(other.model, params, batch, tokens, kept)
  )(params, batch)
  sums = {}
  for name in ('image', 'text'):
    if f'attention_{name}' in found:
      sums[name] = np.asarray(found[f'attention_{name}'].sum(-1))
  total = sum(sums[name] for name in ones or kept)
  assert (
    np.allclose(total, 1, atol=1e-5) if ones else (total[0] < 0.999).all() and (total > 0.01).all()
  )
  if fusion == 'selective':  # seen from the words that are attended to
    np.testing.assert_allclose(sums['image'], 1, atol=1e-5)
  elif 'image' in sums:
    assert (sums['image'][0] > 0.01).all() and (sums['image'][1] == 0).all()
  assert [int(there.sum()) for there in found['mask_text']] == [
    int(mask.sum()) for mask in batch['text_mask']
  ]


def test_the_page_shows_where_a_model_looks(visit, run, tmp_path):  # noqa: F811
  done('report', run, f'--output={tmp_path / "report.html"}')
  data = data_of((tmp_path / 'report.html').read_text())
  looked = [
    row for group in data['groups'] for row in group['rows'] if 'attention' in row['answers'][0]
  ]
  assert (
    8
    <= len(looked)
    <= 24
    == sum('n_best' in row['answers'][0] for group in data['groups'] for row in group['rows'])
  )
  page = visit(tmp_path / 'report.html')
  page.check('#with-attention')
  assert page.locator('#examples > li').count() == len(looked)
  alpha = """(() => {
    const shown = document.querySelector('.picture canvas');
    const copy = document.createElement('canvas');
    const [w, h] = [copy.width, copy.height] = [shown.width, shown.height];
    const context = copy.getContext('2d', {willReadFrequently: true});
    context.drawImage(shown, 0, 0);
    return Math.max(...context.getImageData(0, 0, w, h).data.filter((_, i) => i % 4 === 3));
  })()"""
  assert page.evaluate(alpha) == 0
  word = page.locator('#examples > li').first.locator('.attention button').first
  word.focus()
  assert (
    page.evaluate(alpha) == 204 and '%' in page.locator('.attention > small').nth(1).inner_text()
  )
  assert 'rgba' in page.locator('.words-read span').first.get_attribute('style')
  page.keyboard.press('ArrowRight')
  assert page.evaluate('document.activeElement.previousElementSibling.tagName') == 'BUTTON'
  page.keyboard.press('Enter')
  page.keyboard.press('/')
  assert (
    page.evaluate(alpha) == 204
    and page.locator('.attention button[aria-pressed=true]').count() == 1
  )  # kept


def test_a_page_without_the_model_offers_no_attention(visit, run, tmp_path):  # noqa: F811
  copy = tmp_path / 'copy'
  shutil.copytree(run, copy)
  (path,) = (copy / 'predictions').glob('test-*[0-9].jsonl')
  path.rename(path.with_name('test-1.jsonl'))
  assert 'test-1: without attention and n-best answers, the checkpoint is of step' in done(
    'report', copy
  )
  assert 'its data cannot be read' in done(
    'report', copy, f'--config.data.dir={tmp_path / "nowhere"}', '--config.data.name=multi30k'
  )
  assert not data_of((copy / 'report.html').read_text())['media']
  shutil.rmtree(copy / 'checkpoints')
  assert 'the model cannot be asked' in done('report', copy)
  page = visit(copy / 'report.html')
  assert page.locator('.attention').count() == 0 and page.locator('#with-attention').is_hidden()


def test_greedy_decoding_has_no_alternatives(look):
  experiment, examples, _ = look
  found = AttentionReader(experiment, 'greedy')(examples)
  assert all(not told['n_best'] for told in found.values()) and any(
    'attention' in told for told in found.values()
  )
