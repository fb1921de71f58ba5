"""Trials trained as one program are those trained one by one."""

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
from mmlm.tasks.speech_to_text import SpeechToText
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


def flags_of(settings):
  return [f'--config.{key}={value}' for key, value in settings.items()]


def parameters_of(folder):
  """Returns {name: values} of the newest checkpoint of a run."""
  experiment = Experiment.of_run(folder, {'evaluate.checkpoint': 'latest'})
  loader = experiment.data.loader('test', experiment.data.table('test', False), 4)
  return flat(params_of(experiment, loader)[0])


def test_a_seed_that_is_trained_among_others_is_what_it_is_alone(tmp_path):
  preparation.prepare('mosi/bclstm_videos', mosi(tmp_path / 'mosi'), tmp_path / 'data')
  settings = FEW | {'data.dir': str(tmp_path / 'data')}
  config = configs.override(configs.load_config(SPEC), settings)
  folders = {seed: tmp_path / f'together{seed}' for seed in (3, 4)}
  train_together(config, folders)
  done('train', SPEC, '--workdir', tmp_path / 'alone', *flags_of(settings | {'seed': '4'}))
  third, fourth = map(parameters_of, folders.values())
  alone = parameters_of(tmp_path / 'alone')
  for name, values in alone.items():
    np.testing.assert_allclose(fourth[name], values, atol=1e-5, err_msg=name)
  assert any(np.abs(third[name] - fourth[name]).max() > 1e-3 for name in alone)
  with pytest.raises(UserError, match='is not empty'):
    train_together(config, folders)


def test_seeds_with_batches_of_several_shapes_are_refused(tmp_path):
  config = configs.override(configs.load_config(SPEC), {'data.buckets': '(32, 64)'})
  with pytest.raises(UserError, match='need batches of one shape'):
    train_together(config, {0: tmp_path / 'run'})


# Trials of one shape with different numbers

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
    'train.eval_every': '100 %',
  },
]
TIMES = {'kind', 'seconds', 'examples_per_second'}


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  """A folder with prepared data, and runs trained together in it."""
  folder = tmp_path_factory.mktemp('together')
  train_trials(trials_in(folder, folder))
  return folder


def trials_in(folder, place, settings=OWN):
  """Returns trials in `folder` with the data of `place`."""
  config = configs.override(configs.load_config(SMALL), BASE | {'data.dir': str(place / 'data')})
  trials = []
  for i, of_trial in enumerate(settings):
    trials.append(Trial(configs.override(config, of_trial), folder / f'run{i}'))
  return trials


def log_of(folder):
  """Returns the steps and kinds of the lines of a log, and their numbers without times."""
  log = runs.read_jsonl(folder / 'metrics.jsonl')
  steps = [(line['step'], line['kind']) for line in log]
  numbers = []
  for line in log:
    numbers += [line[key] for key in sorted(line.keys() - TIMES)]
  return steps, numbers


def assert_same_run(left, right):
  """Compares the logs of two runs and the parameters of all of their checkpoints."""
  left_steps, left_numbers = log_of(left)
  right_steps, right_numbers = log_of(right)
  assert left_steps == right_steps
  np.testing.assert_allclose(left_numbers, right_numbers, atol=1e-4)
  left_checkpoints, right_checkpoints = (
    Experiment.of_run(folder, {}).checkpoints() for folder in (left, right)
  )
  assert left_checkpoints.steps() == right_checkpoints.steps()
  for step in left_checkpoints.steps():
    expected = flat(right_checkpoints.params(None, step)[0])
    for name, values in flat(left_checkpoints.params(None, step)[0]).items():
      message = f'{name}, step {step}'
      np.testing.assert_allclose(values, expected[name], atol=1e-4, err_msg=message)


@pytest.mark.parametrize('i', range(len(OWN)))
def test_a_trial_that_is_trained_among_others_is_what_it_is_alone(place, tmp_path, i):
  """Each has its learning rate, warmup, decay, dropout, smoothing, length, seed, validations."""
  flags = flags_of(BASE | OWN[i] | {'data.dir': str(place / 'data')})
  done('train', SMALL, '--workdir', tmp_path / 'alone', *flags)
  assert_same_run(place / f'run{i}', tmp_path / 'alone')
  assert runs.read_json(place / f'run{i}' / 'status.json')['state'] == 'done'
  expected = runs.read_json(tmp_path / 'alone' / 'config.json')
  assert runs.read_json(place / f'run{i}' / 'config.json') == expected


def test_a_group_that_a_signal_has_stopped_resumes_to_the_same_runs(place, tmp_path):
  """The signal comes at a validation; the run that had ended is not trained again."""

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
    assert_same_run(tmp_path / f'run{i}', place / f'run{i}')
  assert (tmp_path / 'run2' / 'metrics.jsonl').stat().st_mtime_ns == before


def test_a_trial_that_diverges_or_is_pruned_does_not_change_the_others(place, tmp_path):
  settings = [
    OWN[0],
    OWN[1] | {'optimizer.learning_rate': '1e30', 'optimizer.warmup': '1 steps'},
    OWN[2] | {'train.duration': '6 steps', 'train.eval_every': '2 steps'},
  ]

  def should_stop(trial, step, scores):
    return trial.folder.name == 'run2'

  train_trials(trials_in(tmp_path, place, settings), should_stop)
  status = [runs.read_json(tmp_path / f'run{i}' / 'status.json') for i in range(3)]
  assert [of_run['state'] for of_run in status] == ['done', 'diverged', 'pruned']
  assert 'Try a lower learning rate' in status[1]['error']
  assert_same_run(tmp_path / 'run0', place / 'run0')
  assert runs.read_jsonl(tmp_path / 'run2' / 'metrics.jsonl')[-1]['step'] == 2


def test_a_sweep_trains_its_trials_together(place, tmp_path):
  space = tmp_path / 'space.py'
  space.write_text("""from mmlm.sweeps.spaces import choices, product


def get_space():
  return product(choices('optimizer.learning_rate', 2e-3, 3e-3))
""")
  flags = flags_of(BASE | {'data.dir': str(place / 'data')})
  words = ('sweep', SMALL, '--executor=vectorised', f'--space={space}', *flags)
  words = (*words, '--workdir', tmp_path / 'sweep')
  printed = done(*words)
  rows = runs.read_json(tmp_path / 'sweep' / 'results.json')
  assert [row['state'] for row in rows] == ['complete'] * 2
  assert f'{rows[0]["score"]:.4f}' in printed
  assert_same_run(tmp_path / 'sweep' / 'runs' / '0000', place / 'run0')
  shutil.rmtree(tmp_path / 'sweep' / 'runs')  # nothing is run again
  done(*words)
  assert not (tmp_path / 'sweep' / 'runs').exists()


# Traced numbers


@pytest.mark.parametrize('rate', [0.1, 0.3, 1 / 512, 0.001, 0.9])
def test_dropout_with_a_traced_rate_is_dropout(rate):
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
