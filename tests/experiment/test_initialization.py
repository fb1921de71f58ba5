"""What parameters start from: those of another run, and the statistics of features."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from program import done, refused
from test_sentiment import features_manifest

from mmlm import config as configs
from mmlm.data.datasets import preparation
from mmlm.experiment.experiment import Experiment
from mmlm.experiment.initialization import moments
from mmlm.experiment.training import training_parts
from mmlm.utils.errors import UserError
from mmlm.utils.pytree import flat, graft

SMALL = ['--config.parallel.strategy=jit', '--config.evaluate.bootstrap_samples=5']
# Parameters that the run on text alone does not have start at random.
NEW_AT_RANDOM = "--config.train.start_rules=(('(fusion|encoders_image)/.*', False), ('.*', True))"
SAME_TOKENIZER = ['--config.tokenizer.kind=run', '--config.tokenizer.source=BASE']


@pytest.fixture(scope='module')
def base(tmp_path_factory):
  """A folder with prepared data and `text`, a run on text alone."""
  folder = tmp_path_factory.mktemp('start')
  preparation.prepare('numerals/tiny', None, folder / 'data')
  spec = 'configs/translation/numerals.py:modalities=text,smoke'
  data = f'--config.data.dir={folder / "data"}'
  done('train', spec, '--workdir', folder / 'text', data, *SMALL)
  return folder


def train_gated(base, folder, *options, start=None):
  """Returns the words of a training of text and image that starts from a run, by default `text`."""
  start = str(start or base / 'text')
  return [
    'train',
    'configs/translation/numerals.py:fusion=gated,smoke',
    '--workdir',
    folder,
    f'--config.data.dir={base / "data"}',
    *SMALL,
    f'--config.train.start_from={start}',
    *(option.replace('BASE', start) for option in options),
  ]


def test_start_rules_copy_parameters_and_leave_the_others_random(base, tmp_path):
  output = done(*train_gated(base, tmp_path / 'run', NEW_AT_RANDOM, *SAME_TOKENIZER))
  assert f'start from {base / "text"}, step 6' in output
  experiment = Experiment.of_run(tmp_path / 'run', {})
  started_from = Experiment.of_run(base / 'text', {})
  assert experiment.data.tokenizer.fingerprint == started_from.data.tokenizer.fingerprint
  shutil.rmtree(tmp_path / 'run' / 'checkpoints')
  _, state = training_parts(experiment, 'train')
  params = flat(state.params)
  copied, _ = started_from.trained_params()
  copied = flat(copied)
  random = {name for name in params if name.startswith(('fusion/', 'encoders_image/'))}
  assert random
  assert params.keys() - random == copied.keys()
  for name, leaf in copied.items():
    np.testing.assert_array_equal(params[name], leaf)


def test_a_resumed_run_does_not_need_the_run_that_it_started_from(base, tmp_path):
  start = tmp_path / 'start'
  shutil.copytree(base / 'text', start)
  argv = train_gated(base, tmp_path / 'run', NEW_AT_RANDOM, *SAME_TOKENIZER, start=start)
  done(*argv)
  shutil.rmtree(start)
  assert 'The run is complete' in done(*argv)


@pytest.mark.parametrize(
  'options, message',
  [
    (
      [NEW_AT_RANDOM],
      'has an embedding for each token, and the vocabulary of that run differs',
    ),
    (['--config.tokenizer.kind=run'], "tokenizer.source=''"),
    (SAME_TOKENIZER, 'do not fit'),
    ([*SAME_TOKENIZER, NEW_AT_RANDOM, '--config.model.dim=64'], '(32,) -> (64,)'),
    (['--config.train.start_from=nowhere'], 'nowhere: not a run folder'),
  ],
)
def test_parameters_or_tokens_that_differ_are_named(base, tmp_path, options, message):
  # A tokenizer that is trained on fewer texts has another vocabulary.
  few_texts = '--config.data.splits.train=train[:20]'
  assert message in refused(*train_gated(base, tmp_path / 'run', *options, few_texts))


def test_a_graft_copies_only_what_the_rules_name():
  zeros = {'a': {'b': jnp.zeros(2)}, 'c': jnp.zeros(3)}
  ones = jax.tree.map(jnp.ones_like, zeros)
  grafted = graft(zeros, ones, (('a/.*', True), ('.*', False)), 'rules', 'ones')
  means = jax.tree.map(lambda leaf: float(leaf.mean()), grafted)
  assert means == {'a': {'b': 1.0}, 'c': 0.0}
  with pytest.raises(UserError, match=r'c: absent -> \(3,\)'):
    graft(zeros, {'a': ones['a']}, (('.*', True),), 'rules', 'ones')


def audio_batch(rng, size):
  """Returns a batch whose padding is very large, and its frames without padding."""
  frames = rng.normal((3, -1, 190), (2, 1e-3, 0), size=(size, 5, 3))
  mask = rng.random((size, 5)) < 0.5
  weight = np.arange(size) < size - 1  # the last example only fills the batch
  batch = {
    'audio': np.where(mask[..., None], frames, 1e9),
    'audio_mask': mask,
    'weight': weight.astype(np.float32),
  }
  return batch, frames[mask & weight[:, None]]


def test_moments_ignore_padding():
  rng = np.random.default_rng(0)
  first, first_frames = audio_batch(rng, 4)
  second, second_frames = audio_batch(rng, 7)
  frames = np.concatenate([first_frames, second_frames])
  statistics = moments([first, second], ['audio'])['audio']
  # The third value is constant: its deviation is replaced by 1.
  deviation = [*frames.std(0)[:2], 1]
  np.testing.assert_allclose(statistics['mean'], frames.mean(0), rtol=1e-5)
  np.testing.assert_allclose(statistics['deviation'], deviation, rtol=1e-4)


def test_moments_of_no_frames_change_nothing():
  batch, _ = audio_batch(np.random.default_rng(0), 4)
  batch['audio_mask'][:] = False
  statistics = moments([batch], ['audio'])['audio']
  assert not statistics['mean'].any()
  assert (statistics['deviation'] == 1).all()


def encode_features(folder, encoder, unit):
  """Returns the memory of a batch of features that are multiplied by `unit`."""
  folder.mkdir()
  manifest = features_manifest(folder, unit=unit)
  spec = f'configs/sentiment/manifest.py:train={manifest},valid={manifest},audio=5'
  settings = {
    'model.encoders.audio.name': encoder,
    'model.dim': '8',
    'train.batch_size': '8',
    'parallel.strategy': 'jit',
  }
  experiment = Experiment(configs.override(configs.load_config(spec), settings), folder / 'run')
  parts, state = training_parts(experiment, str(manifest))
  with parts.stream(0, 1) as batches:
    batch = next(batches)

  def encode(params, batch):
    return experiment.model.apply({'params': params}, batch, method='encode').values

  return jax.jit(encode)(state.params, batch)


@pytest.mark.parametrize('encoder', ['features', 'feature_recurrent'])
def test_the_unit_of_features_does_not_matter(tmp_path, encoder):
  memory = encode_features(tmp_path / '1', encoder, unit=1)
  scaled = encode_features(tmp_path / '1000', encoder, unit=1000)
  np.testing.assert_allclose(memory, scaled, rtol=1e-3, atol=1e-4)
