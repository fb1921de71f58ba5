"""A run that starts from the parameters of another one."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_cli import done, refused

from mmlm.data import prepare
from mmlm.errors import UserError
from mmlm.experiment import Experiment
from mmlm.setup import training_parts
from mmlm.trees import flat, graft

FEW = ['--config.parallel.strategy=jit', '--config.evaluate.bootstrap_samples=5']
NEW = "--config.train.start_rules=(('(fusion|encoders_image)/.*', False), ('.*', True))"


@pytest.fixture(scope='module')
def base(tmp_path_factory):
  """The folder of prepared data, and a run on text alone in it."""
  folder = tmp_path_factory.mktemp('start')
  prepare.prepare('numerals/tiny', None, folder / 'data')
  done('train', 'configs/translation/numerals.py:modalities=text,smoke', '--workdir', folder / 'text', f'--config.data.dir={folder / "data"}', *FEW)
  return folder


def fused(base, folder, *more, spec='fusion=gated,smoke'):
  return [
    'train', f'configs/translation/numerals.py:{spec}', '--workdir', folder, f'--config.data.dir={base / "data"}', *FEW,
    f'--config.train.start_from={base / "text"}', *more,
  ]  # fmt: skip


def test_what_the_rules_take_is_the_other_run_s_and_the_rest_is_random(base, tmp_path):
  run = f'--config.tokenizer.source={base / "text"}', '--config.tokenizer.kind=run'
  said = done(*fused(base, tmp_path / 'run', NEW, *run))
  assert f'start from {base / "text"}, step 6' in said
  experiment, other = Experiment.of_run(tmp_path / 'run', {}), Experiment.of_run(base / 'text', {})
  assert experiment.tokenizer.fingerprint == other.tokenizer.fingerprint
  shutil.rmtree(tmp_path / 'run' / 'checkpoints')
  _, state = training_parts(experiment, 'train')
  theirs, _ = other.checkpoints().params(None, other.config.evaluate.checkpoint)
  mine, theirs = flat(state.params), flat(theirs)
  new = {name for name in mine if name.startswith(('fusion/', 'encoders_image/'))}
  assert new and mine.keys() - new == theirs.keys()
  for name, leaf in theirs.items():
    np.testing.assert_array_equal(mine[name], leaf)


def test_a_run_that_goes_on_does_not_need_the_other(base, tmp_path):
  shutil.copytree(base / 'text', tmp_path / 'other')
  argv = fused(base, tmp_path / 'run', NEW, f'--config.train.start_from={tmp_path / "other"}', f'--config.tokenizer.source={tmp_path / "other"}',
               '--config.tokenizer.kind=run')  # fmt: skip
  done(*argv)
  shutil.rmtree(tmp_path / 'other')
  assert 'The run is complete' in done(*argv)


@pytest.mark.parametrize('more, says', [
  ([NEW], 'has a row a token, and the tokens there are others'),
  (['--config.tokenizer.kind=run'], "tokenizer.source=''"),
  (['--config.tokenizer.kind=run', '--config.tokenizer.source=BASE'], 'do not fit (there -> here)'),
  (['--config.tokenizer.kind=run', '--config.tokenizer.source=BASE', NEW, '--config.model.dim=64'], '(32,) -> (64,)'),
  (['--config.train.start_from=nowhere'], 'nowhere: not a run folder'),
])  # fmt: skip
def test_what_does_not_fit_is_named(base, tmp_path, more, says):
  # The other tokenizer has learned other texts.
  other = ['--config.data.splits.train=train[:20]']
  assert says in refused(*fused(base, tmp_path / 'run', *(text.replace('BASE', str(base / 'text')) for text in more), *other))


def test_a_graft_leaves_alone_what_no_rule_takes():
  tree, other = ({'a': {'b': jnp.full(2, value)}, 'c': jnp.full(3, value)} for value in (0.0, 1.0))
  grown = graft(tree, other, (('a/.*', True), ('.*', False)), 'rules', 'other')
  assert jax.tree.map(float, jax.tree.map(jnp.mean, grown)) == {'a': {'b': 1.0}, 'c': 0.0}
  with pytest.raises(UserError, match=r'c: absent -> \(3,\)'):
    graft(tree, {'a': other['a']}, (('.*', True),), 'rules', 'other')
