"""LoRA: nothing changes at first, only the factors learn, and a run with it works as any other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from program import done

from mmlm import config as configs
from mmlm.data.datasets import preparation
from mmlm.experiment.experiment import Experiment
from mmlm.experiment.prediction import params_of
from mmlm.training.lora import add_lora, merge_lora
from mmlm.training.optimizers import make_optimizer, make_schedule
from mmlm.utils.errors import UserError
from mmlm.utils.pytree import flat

RULES = (('block/query/kernel', 2), ('block/out/kernel', 3))


def tree():
  rng = np.random.default_rng(0)

  def array(*shape):
    return jnp.asarray(rng.normal(size=shape), jnp.float32)

  return {
    'block': {
      'query': {'kernel': array(8, 2, 4), 'bias': array(2, 4)},
      'out': {'kernel': array(2, 4, 8)},
    },
    'head': {'kernel': array(8, 3)},
  }


def test_factors_have_the_sizes_of_the_matrix_and_change_nothing_at_first():
  params = tree()
  both = add_lora(params, RULES, jax.random.key(0))
  assert {name: leaf.shape for name, leaf in flat(both['lora']).items()} == {
    'block/out/kernel/down': (8, 3),
    'block/out/kernel/up': (3, 8),
    'block/query/kernel/down': (8, 2),
    'block/query/kernel/up': (2, 8),
  }
  merged = merge_lora(both, 16.0)
  assert jax.tree.structure(merged) == jax.tree.structure(params)
  assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), merged, params)))
  assert add_lora(params, (), None) is params and merge_lora(params, 16.0) is params


def test_the_product_is_added_with_its_scale():
  both = add_lora(tree(), RULES, jax.random.key(0))
  both['lora'] = jax.tree.map(jnp.ones_like, both['lora'])
  merged = merge_lora(both, 16.0)
  np.testing.assert_allclose(
    merged['block']['query']['kernel'], tree()['block']['query']['kernel'] + 16, rtol=1e-6
  )  # 16 / 2 x (1 + 1)
  np.testing.assert_allclose(
    merged['block']['out']['kernel'], tree()['block']['out']['kernel'] + 16, rtol=1e-6
  )
  np.testing.assert_array_equal(merged['head']['kernel'], tree()['head']['kernel'])


def test_only_factors_and_what_has_none_learn():
  config = configs.default_config().optimizer
  params = add_lora(tree(), RULES, jax.random.key(0))
  optimizer = make_optimizer(config, make_schedule(config, 10, 1, 1), params)

  def loss(p):
    return sum(jnp.sum((leaf - 1) ** 2) for leaf in jax.tree.leaves(merge_lora(p, 16.0)))

  state = optimizer.init(params)
  before = flat(params)
  for _ in range(3):
    updates, state = optimizer.update(jax.grad(loss)(params), state, params)
    params = jax.tree.map(jnp.add, params, updates)
  moved = {name for name, leaf in flat(params).items() if not (leaf == before[name]).all()}
  assert moved == set(before) - {'block/query/kernel', 'block/out/kernel'}


@pytest.mark.parametrize(
  'rules, says',
  [
    ((('blok/.*', 2),), "the rule 'blok/.*' covers no parameter"),
    ((('block/.*', 2),), r'block/query/kernel|is no matrix'),
    ((('block/query/kernel', -1),), 'rank -1 for block/query/kernel'),
    ((('block/query/kernel', 'all'),), "rank 'all'"),
  ],
)
def test_bad_rules_are_named(rules, says):
  params = tree()
  params['block']['scale'] = jnp.ones(8)
  with pytest.raises(UserError, match=says):
    add_lora(params, rules, jax.random.key(0))


def test_a_run_keeps_its_base_and_is_asked_like_any_other(tmp_path):
  preparation.prepare('three_modalities/tiny', None, tmp_path / 'data')
  folder = tmp_path / 'run'
  said = done(
    'train',
    'configs/sentiment/bert_sst2.py:smoke,lora=2',
    '--workdir',
    folder,
    f'--config.data.dir={tmp_path / "data"}',
    '--config.parallel.strategy=jit',
    "--config.optimizer.rate_rules=(('encoders_text/.*', 0.0), ('.*', 1.0))",
  )
  assert ' of them trained' in said
  assert 'accuracy' in done('evaluate', folder)
  experiment = Experiment.of_run(folder, {'parallel.strategy': 'jit'})
  loader = experiment.data.loader('test', experiment.data.table('test', False), 16)
  merged, step = params_of(experiment, loader)
  assert step == 6 and 'lora' not in merged
  kept, _ = experiment.checkpoints().params(
    experiment.abstract_params(loader_batch(experiment, loader)), 'latest'
  )
  start = experiment.random_params(loader_batch(experiment, loader))

  def base(params):
    return {name: leaf for name, leaf in flat(params).items() if name.startswith('encoders_text')}

  assert all((base(start)[name] == leaf).all() for name, leaf in base(kept).items())
  assert any(
    (leaf != flat(start)[name]).any()
    for name, leaf in flat(kept).items()
    if name.startswith('lora')
  )
  assert any((base(start)[name] != leaf).any() for name, leaf in base(merged).items())


def loader_batch(experiment, loader):
  from mmlm.data.batching import eval_plan

  return loader(0, eval_plan(loader.table.lengths, 16, experiment.data.buckets)[0])
