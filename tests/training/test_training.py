"""Losses, optimizers, the train step and its parallel forms, parameters by path.

Axes: B batch, T time, V vocabulary, D width.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mmlm.config import default_config
from mmlm.models.layers import Dropout
from mmlm.parallel import Parallel, describe_devices
from mmlm.training import losses
from mmlm.training.optimizers import OPTIMIZERS, SCHEDULES, make_optimizer, make_schedule
from mmlm.training.step import StepOptions, initial_state, train_step
from mmlm.utils.choices import nearest
from mmlm.utils.errors import UserError
from mmlm.utils.pytree import by_rules, count, differences, flat

close = functools.partial(np.testing.assert_allclose, atol=1e-5, rtol=1e-5)


def normal(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# Losses


def reference(logits, targets, smoothing):
  labels = optax.smooth_labels(jax.nn.one_hot(targets, logits.shape[-1]), smoothing)
  return optax.softmax_cross_entropy(logits.astype(jnp.float32), labels)


# Logits at once: of all tokens, of 4 of 13 (the last chunk is filled), of one.
@pytest.mark.parametrize('most', [1 << 20, 44, 11])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_losses_and_their_gradient_are_optax_s(smoothing, dtype, most, monkeypatch):
  monkeypatch.setattr(losses, 'LOGITS', {'cpu': most})
  x = (3 * normal(0, 13, 8)).astype(dtype)
  table = normal(1, 11, 8)
  targets = np.random.default_rng(1).integers(11, size=13)
  weights = np.abs(normal(2, 13))

  def through_logits(x, table):
    logits = jnp.einsum('nd,vd->nv', x, table.astype(x.dtype), preferred_element_type=jnp.float32)
    values = reference(logits, targets, smoothing)
    return 2 * (values * weights).sum(), values

  def chunked(x, table):
    total = 2 * losses.summed_loss(x, table, targets, weights, smoothing)
    return total, losses.token_losses(x, table, targets, smoothing)

  def value_and_grad(fn):
    return jax.jit(jax.value_and_grad(fn, (0, 1), has_aux=True))(x, table)

  (total, values), gradients = value_and_grad(chunked)
  (expected_total, expected), expected_gradients = value_and_grad(through_logits)
  assert values.shape == (13,)
  assert values.dtype == jnp.float32
  assert [g.dtype for g in gradients] == [x.dtype, table.dtype]
  tolerance = 1e-5 if dtype == 'float32' else 3e-2

  def assert_equal(a, b):
    np.testing.assert_allclose(np.float32(a), np.float32(b), atol=10 * tolerance, rtol=tolerance)

  results = (total, values, *gradients)
  for result, expected_result in zip(results, (expected_total, expected, *expected_gradients)):
    assert_equal(result, expected_result)

  @jax.jit
  @jax.grad
  def unchunked_gradient(x):
    return 2 * (losses.token_losses(x, table, targets, smoothing) * weights).sum()

  assert_equal(unchunked_gradient(x), gradients[0])


def test_losses_of_extreme_logits_are_finite():
  x = np.eye(1, dtype=np.float32)
  table = np.array([[1e4], [-1e4], [0]], np.float32)
  targets = np.array([1])
  value, gradient = jax.value_and_grad(losses.summed_loss, (0, 1))(
    x, table, targets, np.ones(1), 0.1
  )
  close(value, 0.9 * 2e4 + 0.1 / 3 * (2e4 + 1e4))
  assert all(np.all(np.isfinite(g)) for g in gradient)


# Optimizers

EVERYTHING = (('.*', 1.0),)


def options(**changes):
  config = default_config().optimizer.unlock()
  config.update(changes)
  return config


def schedule_of(total=100, **changes):
  return make_schedule(options(**changes), total, batch_size=10, steps_per_epoch=7)


@pytest.mark.parametrize(
  'name, values',
  {
    'constant': {4: 2.0, 50: 2.0, 100: 2.0},
    'linear': {4: 2.0, 52: 1.1, 100: 0.2, 150: 0.2},
    'cosine': {4: 2.0, 52: 1.1, 28: 0.2 + 0.9 * (1 + 0.5**0.5), 100: 0.2, 150: 0.2},
    'inverse_sqrt': {4: 2.0, 16: 1.0, 100: 0.4},
  }.items(),
)
def test_schedules_at_known_steps(name, values):
  rate = schedule_of(schedule=name, learning_rate=2.0, warmup='4 steps', final_fraction=0.1)
  for step, expected in ({0: 0.0, 1: 0.5, 2: 1.0, 3: 1.5} | values).items():
    np.testing.assert_allclose(rate(step), expected, rtol=1e-5, err_msg=f'step {step}')
  start = schedule_of(schedule=name, learning_rate=2.0, warmup='0 steps')
  np.testing.assert_allclose(start(0), 2.0)


def test_warm_up_is_a_duration():
  rate = schedule_of(schedule='constant', learning_rate=1.0, warmup='2 epochs')
  assert rate(13) < 1 == rate(14)


@pytest.mark.parametrize('key', ['name', 'schedule'])
def test_unknown_names_are_answered_with_the_nearest(key):
  config = options(**{key: 'adamv' if key == 'name' else 'cosin'})
  with pytest.raises(
    UserError, match=f'optimizer.{key}.*Nearest: .{"adamw" if key == "name" else "cosine"}'
  ):
    make_optimizer(config, make_schedule(config, 10, 1, 1), initial_params())


def run_updates(config, params, gradients, total=200):
  """Returns the parameters after an update for each gradient, or function of the parameters."""
  optimizer = make_optimizer(config, make_schedule(config, total, 1, 1), params)
  state = optimizer.init(params)

  @jax.jit
  def update(params, state, gradient):
    updates, state = optimizer.update(gradient, state, params)
    return optax.apply_updates(params, updates), state

  for gradient in gradients:
    params, state = update(params, state, gradient(params) if callable(gradient) else gradient)
  return params, state


@pytest.mark.parametrize('name, schedule', itertools.product(OPTIMIZERS, SCHEDULES))
def test_every_optimizer_with_every_schedule_descends(name, schedule):
  goal = {'a': {'kernel': normal(0, 3, 2), 'bias': normal(1, 2)}}
  config = options(
    name=name, schedule=schedule, learning_rate=0.05, warmup='5 steps', weight_decay=0.0
  )

  def distance(params):
    return sum(float(np.square(p - g).sum()) for p, g in zip(*map(jax.tree.leaves, (params, goal))))

  start = jax.tree.map(np.zeros_like, goal)

  def gradient(params):
    return jax.tree.map(lambda p, g: 2 * (p - g), params, goal)

  params, state = run_updates(config, start, [gradient] * 200)
  assert {x.dtype.name for x in jax.tree.leaves(state)} <= {'float32', 'int32'}
  assert distance(params) < 0.03 * distance(start)


def test_adamw_is_optax_s_with_clipped_gradients_and_masked_decay():
  config = options(
    learning_rate=0.1, warmup='2 steps', epsilon=0.5, weight_decay=0.3, clip_norm=1.5
  )
  params = {'a': {'kernel': normal(0, 3, 2), 'bias': normal(1, 2)}, 'norm': {'scale': normal(2, 2)}}

  def random(seed, size):
    return jax.tree.map(lambda x: size * normal(seed, *x.shape), params)

  gradients = [random(seed, size) for seed, size in enumerate((5, 0.1, 9, 0.3))]

  mask = {'a': {'kernel': True, 'bias': False}, 'norm': {'scale': False}}
  adamw = optax.adamw(make_schedule(config, 200, 1, 1), 0.9, 0.98, 0.5, weight_decay=0.3, mask=mask)
  expected = params
  state = adamw.init(params)
  norms = []
  for gradient in gradients:
    norms.append(np.sqrt(sum(np.square(g).sum() for g in jax.tree.leaves(gradient))))
    clipped = jax.tree.map(lambda g: g * min(1, 1.5 / norms[-1]), gradient)
    updates, state = adamw.update(clipped, state, expected)
    expected = optax.apply_updates(expected, updates)
  assert min(norms) < 1.5 < max(norms)
  jax.tree.map(close, run_updates(config, params, gradients)[0], expected)


def test_weight_decay_spares_biases_scales_and_positions():
  params = {
    name: np.ones((2, 2), np.float32) for name in ('kernel', 'bias', 'scale', 'positions', 'table')
  }
  config = options(learning_rate=0.5, warmup='0 steps', weight_decay=0.1, schedule='constant')
  params = {'head': params}
  found, _ = run_updates(config, params, [jax.tree.map(np.zeros_like, params)])
  for name, value in found['head'].items():
    close(value, 0.95 if name in ('kernel', 'table') else 1.0)


def test_rate_rules_scale_and_freeze():
  params = {
    'encoder': {'kernel': normal(0, 4, 5)},
    'slow': {'kernel': normal(1, 2, 3)},
    'head': {'kernel': normal(1, 2, 3)},
  }
  gradients = []
  for i in range(3):
    gradients.append(
      {'encoder': {'kernel': 1e3 * normal(i, 4, 5)}}
      | {n: {'kernel': normal(i, 2, 3)} for n in ('slow', 'head')}
    )
  rules = (('encoder/.*', 0.0), ('slow/.*', 0.1), *EVERYTHING)
  for name in OPTIMIZERS:
    config = options(
      name=name,
      rate_rules=rules,
      decay_rules=EVERYTHING,
      learning_rate=0.01,
      warmup='0 steps',
      epsilon=1e-2,
    )
    found, state = run_updates(config, params, gradients)
    np.testing.assert_array_equal(found['encoder']['kernel'], params['encoder']['kernel'])
    moved = {key: found[key]['kernel'] - params[key]['kernel'] for key in ('slow', 'head')}
    assert np.abs(moved['head']).min() > 1e-4
    np.testing.assert_allclose(
      moved['slow'], 0.1 * moved['head'], rtol=0.02
    )  # decay acts on what has moved
    assert not [x.shape for x in jax.tree.leaves(state) if x.shape[:1] in ((4,), (5,))], name


def test_statistics_of_features_stand_still():
  params = {'encoder': {'normalization': {'mean': normal(0, 4)}, 'kernel': normal(1, 5)}}
  config = options(rate_rules=EVERYTHING, decay_rules=EVERYTHING, warmup='0 steps')
  found, state = run_updates(config, params, [params])
  np.testing.assert_array_equal(
    found['encoder']['normalization']['mean'], params['encoder']['normalization']['mean']
  )
  assert np.abs(found['encoder']['kernel'] - params['encoder']['kernel']).min() > 0
  assert not [x.shape for x in jax.tree.leaves(state) if x.shape == (4,)]


def test_what_is_frozen_takes_no_part_in_clipping():
  params = {'encoder': normal(0, 4), 'head': normal(1, 4)}
  config = options(
    rate_rules=(('encoder', 0.0), *EVERYTHING),
    decay_rules=EVERYTHING,
    warmup='0 steps',
    epsilon=1.0,
  )
  moved = []
  for size in (0, 1e3):
    moved.append(
      run_updates(config, params, [{'encoder': size * normal(2, 4), 'head': normal(3, 4)}])[0][
        'head'
      ]
    )
  close(*moved, atol=1e-7)


# Parameters by path


TREE = {
  'head': {'kernel': np.zeros((2, 3)), 'bias': np.zeros(3)},
  'encoder': {'kernel': np.zeros(4)},
}


def test_rules_first_match_of_the_whole_name():
  found = by_rules(TREE, (('head/kernel', 1), ('.*/kernel', 2), ('.*', 3)), 'rules')
  assert found == {'head': {'kernel': 1, 'bias': 3}, 'encoder': {'kernel': 2}}
  with pytest.raises(UserError, match="'kernel' covers no parameter.*named like '.*/kernel'"):
    by_rules(TREE, (('kernel', 1), ('.*', 2)), 'rules')


@pytest.mark.parametrize(
  'rules, message',
  [
    ((('.*/kernel', 1),), r'optimizer\.x: no rule covers head/bias \(1 in all\)'),
    ((('hed/.*', 1), ('.*', 2)), r"optimizer\.x: the rule 'hed/\.\*' covers no parameter.*'head/"),
    ((('*', 1),), r"optimizer\.x: '\*' is not a regular expression"),
  ],
  ids=['uncovered', 'covers nothing', 'no regex'],
)
def test_rules_that_are_wrong(rules, message):
  with pytest.raises(UserError, match=message):
    by_rules(TREE, rules, 'optimizer.x')


def test_names_counts_and_differences():
  assert set(flat(TREE)) == {'head/kernel', 'head/bias', 'encoder/kernel'} and count(TREE) == 13
  assert set(flat(initial_state(TREE, StepOptions(optax.sgd(1.0), None), 0))) >= {
    'step',
    'params/head/bias',
    'rng',
  }
  assert nearest('optimiser', ['train', 'optimizer', 'model']) == 'optimizer'
  left = {'a': 1, 'b': {'c': 2, 'd': 3}}
  right = {'a': 1, 'b': {'c': 5}, 'e': 4}
  assert differences(left, right) == ['b.c: 2 -> 5', "b.d: 3 -> '(absent)'", "e: '(absent)' -> 4"]
  assert differences(left, left) == []


# The step


def example_batch(size=16, filled=None):
  """Examples of different weights; those after `filled` have weight 0."""
  weight = np.random.default_rng(5).uniform(0.5, 3, size).astype(np.float32)
  weight[size if filled is None else filled :] = 0
  return {'x': normal(0, size, 4), 'y': normal(1, size), 'weight': weight}


def initial_params():
  return {'up': {'kernel': normal(2, 4, 8), 'bias': normal(3, 8)}, 'down': {'kernel': normal(4, 8)}}


def make_loss(dropout=0.0):
  def loss(params, batch, rng):
    hidden = jnp.tanh(batch['x'] @ params['up']['kernel'] + params['up']['bias'])
    hidden = Dropout(dropout).apply({}, hidden, True, rngs={'dropout': rng})
    errors = jnp.square(hidden @ params['down']['kernel'] - batch['y'])
    return (errors * batch['weight']).sum(), batch['weight'].sum()

  return loss


@functools.cache
def compiled(strategy='jit', accumulate=1, dropout=0.0, ema_decay=0.0, optimizer='adamw'):
  """(parallel, step options, compiled step)."""
  config = options(learning_rate=0.05, warmup='0 steps', epsilon=1e-3)
  transformation = make_optimizer(config, make_schedule(config, 100, 1, 1), initial_params())
  if optimizer == 'sgd':
    transformation = optax.sgd(0.1)
  found = StepOptions(transformation, make_loss(dropout), accumulate, ema_decay)
  parallel = Parallel(strategy)
  return parallel, found, parallel.step(lambda state, batch: train_step(state, batch, found))


def run_steps(batches, seed=0, **kwargs):
  """(state on the host, metrics of each step)."""
  parallel, step_options, step = compiled(**kwargs)
  state = parallel.replicate(initial_state(initial_params(), step_options, seed))
  metrics = []
  for batch in batches:
    state, found = step(state, batch)
    metrics.append(jax.device_get(found))
  return jax.device_get(parallel.unreplicate(state)), metrics


def same(left, right):
  jax.tree.map(close, left, right)


BATCHES = (example_batch(filled=13), example_batch(), example_batch(filled=3))


def test_a_step_is_the_gradient_of_the_weighted_mean():
  batch = example_batch(filled=13)
  mean = jax.jit(lambda params: jnp.divide(*make_loss()(params, batch, jax.random.key(0))))
  value, gradient = jax.value_and_grad(mean)(initial_params())
  state, (metrics,) = run_steps([batch], optimizer='sgd')
  same(state.params, jax.tree.map(lambda p, g: p - 0.1 * g, initial_params(), gradient))
  close(metrics['loss'], value)
  close(metrics['weight'], batch['weight'].sum())
  close(
    metrics['gradient_norm'], np.sqrt(sum(np.square(g).sum() for g in jax.tree.leaves(gradient)))
  )


@pytest.mark.parametrize(
  'other',
  [
    {'accumulate': 4},
    {'strategy': 'pmap'},
    {'strategy': 'pmap', 'accumulate': 2},
    {'strategy': 'mesh'},
    {'strategy': 'mesh', 'accumulate': 2},
  ],
  ids=['micro-batches', 'devices', 'both', 'mesh', 'both on a mesh'],
)
def test_the_same_numbers_however_a_batch_is_divided(other):
  assert jax.local_device_count() == 8
  expected = run_steps(BATCHES)
  found = run_steps(BATCHES, **other)
  same(found[0].params, expected[0].params)
  same(found[0].opt_state, expected[0].opt_state)
  same(found[1], expected[1])
  assert not np.allclose(
    expected[0].params['down']['kernel'], initial_params()['down']['kernel'], atol=1e-2
  )


@pytest.mark.parametrize('strategy', ['jit', 'pmap', 'mesh'])
def test_rows_of_weight_0_change_nothing_whatever_they_hold(strategy):
  expected = run_steps(BATCHES, strategy=strategy)
  for value in (0.0, 1e6):
    batches = [{key: x.copy() for key, x in batch.items()} for batch in BATCHES]
    for batch in batches:
      for key in ('x', 'y'):
        batch[key][batch['weight'] == 0] = value
    same(run_steps(batches, strategy=strategy), expected)


def test_a_batch_of_weight_0_alone_is_finite():
  state, (metrics,) = run_steps([example_batch(filled=0)], optimizer='sgd')
  same(state.params, initial_params())
  assert metrics['loss'] == metrics['weight'] == metrics['gradient_norm'] == 0


def test_the_moving_average():
  """decay = min(ema_decay, (1 + n) / (10 + n)) after n steps: 1/10, 2/11, 3/12, then 0.25."""
  states = [run_steps(BATCHES[:1] * n, ema_decay=0.25)[0] for n in range(6)]
  expected = initial_params()
  same(states[0].ema, expected)
  for state, decay in zip(states[1:], (1 / 10, 2 / 11, 0.25, 0.25, 0.25)):
    expected = jax.tree.map(lambda e, p, d=decay: d * e + (1 - d) * p, expected, state.params)
    same(state.ema, expected)
  assert run_steps(BATCHES)[0].ema == ()


@pytest.mark.parametrize('strategy', ['jit', 'pmap', 'mesh'])
def test_steps_are_counted_and_the_old_state_is_donated(strategy):
  parallel, step_options, step = compiled(strategy)
  state = parallel.replicate(initial_state(initial_params(), step_options, 0))
  assert int(parallel.unreplicate(state).step) == 0
  new, _ = step(state, BATCHES[0])
  assert state.params['up']['kernel'].is_deleted()
  assert (
    int(parallel.unreplicate(new).step) == 1
    and int(parallel.unreplicate(step(new, BATCHES[0])[0]).step) == 2
  )


def dropped_loss(batch, step=0, seed=0, **kwargs):
  """The loss of a batch at a step of a run, dropout on."""
  parallel, step_options, compiled_step = compiled(dropout=0.5, optimizer='sgd', **kwargs)
  state = initial_state(initial_params(), step_options, seed)._replace(step=jnp.int32(step))
  return float(compiled_step(parallel.replicate(state), batch)[1]['loss'])


def test_dropout_on_a_mesh_is_that_of_one_device():
  batch = example_batch()
  close(dropped_loss(batch, strategy='mesh'), dropped_loss(batch))
  assert abs(dropped_loss(batch, strategy='pmap') - dropped_loss(batch)) > 1e-3


def test_dropout_depends_on_seed_and_step():
  batch = example_batch()
  assert dropped_loss(batch) == dropped_loss(batch)
  assert len({dropped_loss(batch, *at) for at in ((0, 0), (1, 0), (2, 0), (0, 1), (1, 1))}) == 5


@pytest.mark.parametrize(
  'kwargs, part',
  [({'accumulate': 16}, 1), ({'strategy': 'pmap'}, 2)],
  ids=['micro-batches', 'devices'],
)
def test_dropout_differs_between_the_parts_of_a_batch(kwargs, part):
  """All parts have the same examples: with one key the mean would be that of the first part."""
  batch = {key: np.repeat(x[:1], 16, 0) for key, x in example_batch().items()}
  first = batch | {'weight': np.where(np.arange(16) < part, batch['weight'], 0)}
  assert abs(dropped_loss(batch, **kwargs) - dropped_loss(first, **kwargs)) > 1e-3


# Parallel


def test_replicate_and_back():
  tree = {'a': normal(0, 3), 'n': np.int32(4), 'rng': jax.random.key_data(jax.random.key(3))}
  for strategy, devices in (('jit', 1), ('pmap', 8), ('auto', 8), ('mesh', 8)):
    parallel = Parallel(strategy)
    assert parallel.devices == devices
    replicated = parallel.replicate(tree)
    jax.tree.map(np.testing.assert_array_equal, parallel.unreplicate(replicated), tree)
    assert len(replicated['a'].sharding.device_set) == devices


@pytest.mark.parametrize('size', [8, 24, 13])
def test_rows_come_back_in_their_order(size):
  batch = {'x': normal(0, size, 4), 'n': np.arange(size)}

  def apply(params, batch):
    return {'y': batch['x'] @ params['w'], 'n': 2 * batch['n']}

  found = []
  for strategy in ('jit', 'pmap', 'mesh'):
    parallel = Parallel(strategy)
    found.append(parallel.per_example(apply)(parallel.replicate({'w': normal(1, 4, 3)}), batch))
  for other in found[1:]:
    same(found[0], other)
    assert other['y'].shape == (size, 3)
    np.testing.assert_array_equal(other['n'], 2 * np.arange(size))


@pytest.mark.parametrize('strategy', ['jit', 'pmap', 'mesh'])
def test_a_batch_that_does_not_divide_is_filled_up(strategy):
  batches = [{key: x[:13] for key, x in batch.items()} for batch in BATCHES]
  filled = []
  for batch in batches:
    filled.append(
      {key: np.concatenate([x, np.zeros((3, *x.shape[1:]), x.dtype)]) for key, x in batch.items()}
    )
  same(run_steps(batches, strategy=strategy), run_steps(filled))


def test_devices_are_described():
  with pytest.raises(UserError, match="parallel.strategy='shard'"):
    Parallel('shard')
  found = describe_devices()
  assert (found['platform'], found['count']) == ('cpu', 8)
