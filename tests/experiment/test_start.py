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

FEW = ['--config.parallel.strategy=jit', '--config.evaluate.bootstrap_samples=5']
NEW = "--config.train.start_rules=(('(fusion|encoders_image)/.*', False), ('.*', True))"


@pytest.fixture(scope='module')
def base(tmp_path_factory):
  """The folder of prepared data, and a run on text alone in it."""
  folder = tmp_path_factory.mktemp('start')
  preparation.prepare('numerals/tiny', None, folder / 'data')
  done(
    'train',
    'configs/translation/numerals.py:modalities=text,smoke',
    '--workdir',
    folder / 'text',
    f'--config.data.dir={folder / "data"}',
    *FEW,
  )
  return folder


def fused(base, folder, *more, spec='fusion=gated,smoke'):
  return [
    'train',
    f'configs/translation/numerals.py:{spec}',
    '--workdir',
    folder,
    f'--config.data.dir={base / "data"}',
    *FEW,
    f'--config.train.start_from={base / "text"}',
    *more,
  ]


def test_what_the_rules_take_is_the_other_run_s_and_the_rest_is_random(base, tmp_path):
  run = f'--config.tokenizer.source={base / "text"}', '--config.tokenizer.kind=run'
  said = done(*fused(base, tmp_path / 'run', NEW, *run))
  assert f'start from {base / "text"}, step 6' in said
  experiment = Experiment.of_run(tmp_path / 'run', {})
  other = Experiment.of_run(base / 'text', {})
  assert experiment.data.tokenizer.fingerprint == other.data.tokenizer.fingerprint
  shutil.rmtree(tmp_path / 'run' / 'checkpoints')
  _, state = training_parts(experiment, 'train')
  theirs, _ = other.checkpoints().params(None, other.config.evaluate.checkpoint)
  mine = flat(state.params)
  theirs = flat(theirs)
  new = {name for name in mine if name.startswith(('fusion/', 'encoders_image/'))}
  assert new and mine.keys() - new == theirs.keys()
  for name, leaf in theirs.items():
    np.testing.assert_array_equal(mine[name], leaf)


def test_a_run_that_goes_on_does_not_need_the_other(base, tmp_path):
  shutil.copytree(base / 'text', tmp_path / 'other')
  argv = fused(
    base,
    tmp_path / 'run',
    NEW,
    f'--config.train.start_from={tmp_path / "other"}',
    f'--config.tokenizer.source={tmp_path / "other"}',
    '--config.tokenizer.kind=run',
  )
  done(*argv)
  shutil.rmtree(tmp_path / 'other')
  assert 'The run is complete' in done(*argv)


@pytest.mark.parametrize(
  'more, says',
  [
    ([NEW], 'has an embedding for each token, and the vocabulary of that run differs'),
    (['--config.tokenizer.kind=run'], "tokenizer.source=''"),
    (
      ['--config.tokenizer.kind=run', '--config.tokenizer.source=BASE'],
      'do not fit (there -> here)',
    ),
    (
      [
        '--config.tokenizer.kind=run',
        '--config.tokenizer.source=BASE',
        NEW,
        '--config.model.dim=64',
      ],
      '(32,) -> (64,)',
    ),
    (['--config.train.start_from=nowhere'], 'nowhere: not a run folder'),
  ],
)
def test_what_does_not_fit_is_named(base, tmp_path, more, says):
  # The other tokenizer has learned other texts.
  other = ['--config.data.splits.train=train[:20]']
  assert says in refused(
    *fused(
      base, tmp_path / 'run', *(text.replace('BASE', str(base / 'text')) for text in more), *other
    )
  )


def test_a_graft_leaves_alone_what_no_rule_takes():
  tree, other = ({'a': {'b': jnp.full(2, value)}, 'c': jnp.full(3, value)} for value in (0.0, 1.0))
  grown = graft(tree, other, (('a/.*', True), ('.*', False)), 'rules', 'other')
  assert jax.tree.map(float, jax.tree.map(jnp.mean, grown)) == {'a': {'b': 1.0}, 'c': 0.0}
  with pytest.raises(UserError, match=r'c: absent -> \(3,\)'):
    graft(tree, {'a': other['a']}, (('.*', True),), 'rules', 'other')


def test_moments_are_of_what_is_there():
  rng = np.random.default_rng(0)
  batches = []
  rows = []
  for size in (4, 7):
    x = rng.normal((3, -1, 190), (2, 1e-3, 0), size=(size, 5, 3))
    mask = rng.random((size, 5)) < 0.5
    weight = np.arange(size) < size - 1  # the last is no example
    rows.append(x[mask & weight[:, None]])
    batches.append(
      {
        'audio': np.where(mask[..., None], x, 1e9),
        'audio_mask': mask,
        'weight': weight.astype(np.float32),
      }
    )
  (found,) = moments(batches, ['audio']).values()
  rows = np.concatenate(rows)
  np.testing.assert_allclose(found['mean'], rows.mean(0), rtol=1e-5)
  np.testing.assert_allclose(found['deviation'], [*rows.std(0)[:2], 1], rtol=1e-4)
  for batch in batches:
    batch['audio_mask'][:] = False
  (none,) = moments(batches, ['audio']).values()
  assert not none['mean'].any() and (none['deviation'] == 1).all()


@pytest.mark.parametrize('encoder', ['features', 'feature_recurrent'])
def test_features_in_another_unit_are_the_same_features(tmp_path, encoder):
  memories = []
  for unit in (1, 1000):
    folder = tmp_path / str(unit)
    folder.mkdir()
    mine = features_manifest(folder, unit=unit)
    config = configs.load_config(f'configs/sentiment/manifest.py:train={mine},valid={mine},audio=5')
    config = configs.override(
      config,
      {
        'model.encoders.audio.name': encoder,
        'model.dim': '8',
        'train.batch_size': '8',
        'parallel.strategy': 'jit',
      },
    )
    experiment = Experiment(config, folder / 'run')
    parts, state = training_parts(experiment, str(mine))
    with parts.stream(0, 1) as batches:
      batch = next(batches)
    memories.append(
      jax.jit(
        lambda params, batch, model=experiment.model: (
          model.apply({'params': params}, batch, method='encode').values
        )
      )(state.params, batch)
    )
  np.testing.assert_allclose(*memories, rtol=1e-3, atol=1e-4)
