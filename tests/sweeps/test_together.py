"""Trials trained as one program are those trained one by one."""

import re
import shutil
import signal
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from program import done
from test_sentiment import mosi

from mmlm import config as configs
from mmlm.data.datasets import preparation
from mmlm.experiment.experiment import Experiment
from mmlm.experiment.prediction import params_of
from mmlm.models.layers import Dropout
from mmlm.sweeps.together import Trial, train_together, train_trials
from mmlm.tasks.speech import SpeechToText
from mmlm.training.loop import Interrupted
from mmlm.training.losses import summed_loss
from mmlm.utils import run_dir as runs
from mmlm.utils.errors import UserError
from mmlm.utils.pytree import flat

SPEC = 'configs/sentiment/mosi_context.py:fusion=low_rank,modalities=text+audio'
FEW = {
  'data.buckets': '(64,)',
  'train.duration': '3 epochs',
  'train.eval_every': '3 epochs',
  'train.batch_size': '4',
  'model.dim': '8',
  'model.head.hidden': '8',
  'parallel.strategy': 'jit',
  'optimizer.epsilon': '1e-6',
}


def test_seeds_together_are_seeds_one_by_one(tmp_path):
  preparation.prepare('mosi/bclstm_videos', mosi(tmp_path / 'mosi'), tmp_path / 'data')
  settings = FEW | {'data.dir': str(tmp_path / 'data')}
  config = configs.override(configs.load_config(SPEC), settings)
  experiments = train_together(config, {seed: tmp_path / f'together{seed}' for seed in (3, 4)})
  found = []
  for seed, experiment in zip((3, 4), experiments):
    alone = tmp_path / f'alone{seed}'
    done(
      'train',
      SPEC,
      '--workdir',
      alone,
      f'--config.seed={seed}',
      *(f'--config.{key}={value}' for key, value in settings.items()),
    )
    loader = experiment.loader('test', experiment.table('test', False), 4)
    both = [
      flat(params_of(Experiment.of_run(folder, {'evaluate.checkpoint': 'latest'}), loader)[0])
      for folder in (experiment.folder, alone)
    ]
    for name, values in both[0].items():
      np.testing.assert_allclose(values, both[1][name], atol=1e-5, err_msg=name)
    found.append(both[0])
    assert re.search(
      r'accuracy +[\d.]+',
      done('evaluate', experiment.folder, '--config.evaluate.checkpoint=latest'),
    )
  assert any(np.abs(found[0][name] - found[1][name]).max() > 1e-3 for name in found[0])
  with pytest.raises(UserError, match='is not empty'):
    train_together(config, {3: tmp_path / 'together3'})


def test_buckets_are_refused(tmp_path):
  config = configs.override(configs.load_config(SPEC), {'data.buckets': '(32, 64)'})
  with pytest.raises(UserError, match='need batches of one shape'):
    train_together(config, {0: tmp_path / 'run'})


# Trials of one shape with other numbers

SMALL = 'configs/sentiment/generated.py:smoke,modalities=audio'
BASE = {
  'parallel.strategy': 'jit',
  'model.encoders.audio.name': 'features',
  'model.dim': '8',
  'optimizer.epsilon': '1e-5',
  'optimizer.warmup': '2 steps',
  'train.log_every': '1 steps',
  'train.label_smoothing': '0.1',
  'model.head.answer_dropout': '0.3',
  'train.eval_every': '2 steps',
}
OWN = [
  {},
  {
    'optimizer.learning_rate': '3e-3',
    'optimizer.warmup': '4 steps',
    'seed': '1',
    'train.label_smoothing': '0.05',
    'model.dropout': '0.3',
  },
  {
    'train.duration': '3 steps',
    'optimizer.weight_decay': '0.3',
    'model.head.answer_dropout': '0.1',
    'train.eval_every': '3 steps',
  },
]
TIMES = ('kind', 'seconds', 'examples_per_second')


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  """A folder with prepared data, and runs trained together in it."""
  folder = tmp_path_factory.mktemp('together')
  train_trials(trials_in(folder, folder))
  return folder


def trials_in(folder, place, own=OWN):
  config = configs.override(configs.load_config(SMALL), BASE | {'data.dir': str(place / 'data')})
  result = []
  for i, more in enumerate(own):
    result.append(Trial(configs.override(config, more), folder / f'run{i}'))
  return result


def same(left, right):
  """Two runs: the lines of their logs, and the parameters of all of their checkpoints."""
  rows = [runs.read_jsonl(folder / 'metrics.jsonl') for folder in (left, right)]
  assert [(row['step'], row['kind']) for row in rows[0]] == [
    (row['step'], row['kind']) for row in rows[1]
  ]
  for a, b in zip(*rows):
    np.testing.assert_allclose(
      [a[key] for key in a if key not in TIMES],
      [b[key] for key in a if key not in TIMES],
      atol=1e-4,
    )
  checkpoints = [Experiment.of_run(folder, {}).checkpoints() for folder in (left, right)]
  assert checkpoints[0].steps() == checkpoints[1].steps()
  for step in checkpoints[0].steps():
    both = [flat(one.params(None, step)[0]) for one in checkpoints]
    for name, values in both[0].items():
      np.testing.assert_allclose(values, both[1][name], atol=1e-4, err_msg=f'{name}, step {step}')


@pytest.mark.parametrize('i', range(len(OWN)))
def test_a_trial_is_its_lone_run(place, tmp_path, i):
  """Rates, warm-up, decay, dropout, smoothing, length, seed and validations are each trial's own."""
  flags = BASE | OWN[i] | {'data.dir': str(place / 'data')}
  done(
    'train',
    SMALL,
    '--workdir',
    tmp_path / 'alone',
    *(f'--config.{key}={value}' for key, value in flags.items()),
  )
  same(place / f'run{i}', tmp_path / 'alone')
  assert runs.read_json(place / f'run{i}' / 'status.json')['state'] == 'done'
  configs_of = []
  for folder in (place / f'run{i}', tmp_path / 'alone'):
    configs_of.append(runs.read_json(folder / 'config.json'))
  assert configs_of[0] == configs_of[1]


def test_a_group_that_was_stopped_goes_on(place, tmp_path):
  """After a signal at one validation; the run that had ended stays as it is."""

  def stop(trial, step, scores):
    if trial.folder.name == 'run1' and step == 4:
      signal.raise_signal(signal.SIGTERM)
    return False

  with pytest.raises(Interrupted):
    train_trials(trials_in(tmp_path, place), stop)
  states = [runs.read_json(tmp_path / f'run{i}' / 'status.json')['state'] for i in range(3)]
  assert states == ['interrupted', 'interrupted', 'done']
  before = (tmp_path / 'run2' / 'metrics.jsonl').stat().st_mtime_ns
  train_trials(trials_in(tmp_path, place))
  for i in range(3):
    same(tmp_path / f'run{i}', place / f'run{i}')
  assert (tmp_path / 'run2' / 'metrics.jsonl').stat().st_mtime_ns == before


def test_one_that_diverges_or_is_pruned_leaves_the_others(place, tmp_path):
  own = [
    OWN[0],
    OWN[1] | {'optimizer.learning_rate': '1e30', 'optimizer.warmup': '1 steps'},
    OWN[2] | {'train.duration': '6 steps', 'train.eval_every': '2 steps'},
  ]
  train_trials(
    trials_in(tmp_path, place, own), lambda trial, step, scores: trial.folder.name == 'run2'
  )
  status = [runs.read_json(tmp_path / f'run{i}' / 'status.json') for i in range(3)]
  assert [one['state'] for one in status] == [
    'done',
    'diverged',
    'pruned',
  ] and 'Try a lower learning rate' in status[1]['error']
  same(tmp_path / 'run0', place / 'run0')
  assert runs.read_jsonl(tmp_path / 'run2' / 'metrics.jsonl')[-1]['step'] == 2


def test_a_sweep_trains_its_trials_together(place, tmp_path):
  space = tmp_path / 'space.py'
  space.write_text("""from mmlm.sweeps.spaces import choices, product


def get_space():
  return product(choices('optimizer.learning_rate', 2e-3, 3e-3))
""")
  flags = []
  for key, value in (BASE | {'data.dir': str(place / 'data')}).items():
    flags.append(f'--config.{key}={value}')
  words = (
    'sweep',
    SMALL,
    '--executor=vectorised',
    f'--space={space}',
    '--workdir',
    tmp_path / 'sweep',
    *flags,
  )
  said = done(*words)
  rows = runs.read_json(tmp_path / 'sweep' / 'results.json')
  assert [row['state'] for row in rows] == ['complete'] * 2 and f'{rows[0]["score"]:.4f}' in said
  same(tmp_path / 'sweep' / 'runs' / '0000', place / 'run0')
  shutil.rmtree(tmp_path / 'sweep' / 'runs')  # nothing is run again
  done(*words)
  assert not (tmp_path / 'sweep' / 'runs').exists()


# Numbers that are traced


@pytest.mark.parametrize('rate', [0.1, 0.3, 1 / 512, 0.001, 0.9])
def test_dropout_of_a_traced_rate_is_dropout(rate):
  x = jnp.arange(1.0, 301).reshape(3, 100)
  key = {'dropout': jax.random.key(0)}
  traced = jax.jit(lambda rate: Dropout(rate).apply({}, x, True, rngs=key))(rate)
  np.testing.assert_allclose(traced, Dropout(rate).apply({}, x, True, rngs=key), rtol=1e-6)


def test_a_traced_weight_of_ctc_is_the_weight(monkeypatch):
  task = SpeechToText(('wer',))
  decoder = jnp.ones((2, 3)), jnp.eye(4, 3), jnp.arange(2), jnp.ones(2)
  monkeypatch.setattr(
    SpeechToText, '_branches', lambda *given: (decoder, jnp.full(1, 5.0), jnp.full(1, 2.0))
  )

  def loss(weight):
    return task.loss(types.SimpleNamespace(head=types.SimpleNamespace(ctc_weight=weight)), {}, {})[
      0
    ]

  np.testing.assert_allclose(
    jax.vmap(loss)(jnp.array([0.3, 0.6])), [loss(0.3), loss(0.6)], rtol=1e-6
  )


def test_the_loss_of_a_traced_smoothing_is_the_loss():
  keys = jax.random.split(jax.random.key(0), 2)
  x = jax.random.normal(keys[0], (6, 4))
  table = jax.random.normal(keys[1], (9, 4))
  targets = jnp.arange(6)

  def loss(smoothing):
    return jax.value_and_grad(summed_loss, (0, 1))(x, table, targets, jnp.arange(6.0), smoothing)

  traced = jax.vmap(loss)(jnp.array([0.1, 0.4]))
  for i, smoothing in enumerate((0.1, 0.4)):
    jax.tree.map(
      lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-5, atol=1e-6),
      traced,
      loss(smoothing),
    )
