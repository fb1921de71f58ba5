"""The training loop and its checkpoints on a toy (toy_run.py): resume, what is kept, logs."""

import json
import os
import signal
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from toy_run import TOTAL, Toy, close, equal, fill, killed_at, tree, value

from mmlm.training import loop
from mmlm.training.checkpoints import Checkpoints
from mmlm.utils.errors import UserError

# Resume


@pytest.mark.parametrize(
  'number, how', [(0, signal.SIGTERM), (4, signal.SIGINT), (5, signal.SIGTERM), (9, signal.SIGTERM)]
)
def test_an_interrupted_run_goes_on_with_the_same_bits(whole, tmp_path, number, how):
  """Before, between and at the steps of logging (2) and of checkpoints (3)."""
  run = Toy(tmp_path, at=killed_at(number, how))
  with pytest.raises(loop.Interrupted, match=f'saved at step {number + 1}'):
    run.train()
  assert run.steps()[-1] == number + 1 and signal.getsignal(how) is not None
  Toy(tmp_path).train()
  (state, meta), (wanted, wanted_meta) = run.restored(), whole.restored()
  assert equal(state, wanted) and meta == wanted_meta
  assert run.metrics() == whole.metrics()


def test_interrupted_at_every_step(whole, tmp_path):
  class Once:
    def __init__(self):
      self.seen = set()

    def __call__(self, number):
      if number not in self.seen:
        self.seen.add(number)
        os.kill(os.getpid(), signal.SIGTERM)

  run = Toy(tmp_path, at=Once())
  stops = 0
  for _ in range(TOTAL):
    with pytest.raises(loop.Interrupted):
      run.train()
    stops += 1
  run.train()
  assert (
    stops == TOTAL
    and equal(run.restored()[0], whole.restored()[0])
    and run.metrics() == whole.metrics()
  )


def test_a_loader_that_dies_of_the_same_signal(whole, tmp_path):
  """Ctrl-C also reaches loader processes; an error because one of them died saves nothing new."""

  def dies(number):
    if number == 5:
      os.kill(os.getpid(), signal.SIGINT)
      raise RuntimeError('Worker process was terminated unexpectedly')

  with pytest.raises(loop.Interrupted, match='resumes from the last checkpoint'):
    Toy(tmp_path, at=dies).train()
  run = Toy(tmp_path)
  assert run.steps() == [3]
  run.train()
  assert equal(run.restored()[0], whole.restored()[0]) and run.metrics() == whole.metrics()


def test_a_loader_that_dies_of_itself_is_no_interruption(tmp_path):
  def dies(number):
    raise RuntimeError('Worker process was terminated unexpectedly')

  with pytest.raises(RuntimeError, match='Worker process'):
    Toy(tmp_path, at=dies).train()


def test_signals_do_what_they_did_before_once_training_is_over(whole, tmp_path):
  before = signal.getsignal(signal.SIGTERM)
  Toy(tmp_path, total=1).train()
  assert signal.getsignal(signal.SIGTERM) is before


def test_the_number_of_workers_may_change(whole, tmp_path):
  with pytest.raises(loop.Interrupted):
    Toy(tmp_path, at=killed_at(3)).train()
  run = Toy(tmp_path, workers=2).train()
  assert equal(run.restored()[0], whole.restored()[0]) and run.metrics() == whole.metrics()


@pytest.mark.parametrize('first, then', [('jit', 'pmap'), ('pmap', 'jit')])
def test_the_number_of_devices_may_change(tmp_path, first, then):
  """Without dropout, whose random bits belong to a device."""
  assert jax.local_device_count() == 8
  wanted = Toy(tmp_path / 'whole', first, noise=False).train()
  with pytest.raises(loop.Interrupted):
    Toy(tmp_path / 'run', first, noise=False, at=killed_at(4)).train()
  run = Toy(tmp_path / 'run', then, noise=False).train()
  assert close(run.restored()[0], wanted.restored()[0], 1e-5)
  for row, other in zip(run.metrics(), wanted.metrics(), strict=True):
    assert row.pop('kind') == other.pop('kind') and row == pytest.approx(other, rel=1e-5)


def test_a_complete_run_is_left_as_it_is(copy, capsys):
  before = tree(copy)
  Toy(copy).train()
  assert 'The run is complete.' in capsys.readouterr().out
  assert tree(copy) == before


def test_a_longer_schedule_goes_on(copy, tmp_path):
  run = Toy(copy, total=13).train()
  wanted = Toy(tmp_path / 'long', total=13).train()
  assert run.steps()[-1] == 13 and equal(run.restored()[0], wanted.restored()[0])


# Policy


@pytest.mark.parametrize(
  'monitor, scores, latest, best, left, named',
  [
    ('loss', [5, 1, 3, 4], 1, 1, [2, 4], 2),
    ('loss', [5, 1, 3, 4], 2, 1, [2, 3, 4], 2),
    ('loss', [5, 1, 3, 4], 1, 2, [2, 3, 4], 2),
    ('bleu_4', [5, 1, 3, 4], 1, 1, [1, 4], 1),
    ('dev/loss', [5, 1, 3, 4], 1, 1, [2, 4], 2),
    ('dev/bleu_4', [5, 1, 3, 4], 1, 1, [1, 4], 1),
    ('loss', [4, 3, 2, 1], 1, 1, [4], 4),
    ('loss', [2, np.nan, 3], 1, 1, [1, 3], 1),
    ('bleu_4', [1, np.nan, np.inf], 1, 1, [1, 3], 1),
  ],
)
def test_the_newest_and_the_best_stay(tmp_path, monitor, scores, latest, best, left, named):
  checkpoints = fill(tmp_path, scores, monitor=monitor, keep_latest=latest, keep_best=best)
  assert checkpoints.steps() == left
  assert value(checkpoints) == (named, named)
  assert value(checkpoints, 'latest') == (len(scores), len(scores))


def test_equal_scores(tmp_path):
  checkpoints = fill(tmp_path, [1, 1, 3, 1, 2], keep_latest=1)
  best, step = value(checkpoints)
  assert best == step and step in (1, 2, 4) and checkpoints.steps() == [step, 5]


def test_which_parameters_are_evaluated(tmp_path):
  checkpoints = fill(tmp_path, [5, 1, 3, 4], keep_latest=4)
  assert value(checkpoints, 'best') == (2, 2) and value(checkpoints, 'latest') == (4, 4)
  assert value(checkpoints, 3) == value(checkpoints, '3') == (3, 3)
  assert value(checkpoints, 'latest', 3) == (3, 4)  # the mean of 2, 3 and 4
  assert value(checkpoints, 'best', 2) == (1.5, 2)
  for which, average, says in (
    ('newest', 1, "'newest': not in .*which holds \\[1, 2, 3, 4\\]"),
    (7, 1, '7'),
    ('', 1, "''"),
    ('latest', 5, 'average=5.*train.keep_latest'),
  ):
    with pytest.raises(UserError, match=says):
      value(checkpoints, which, average)


def test_the_moving_average_is_evaluated_where_there_is_one(whole, tmp_path):
  state, _ = whole.restored()
  assert not equal(state.ema, state.params)
  assert equal(whole.best('latest')[0], state.ema)
  run = Toy(tmp_path, ema=0.0, total=2).train()
  assert equal(run.best('latest')[0], run.restored()[0].params)


def test_no_checkpoint(tmp_path):
  for folder in (tmp_path / 'nowhere', tmp_path):
    with pytest.raises(UserError, match='no checkpoint. Train first'):
      Checkpoints(folder, writing=False, higher_is_better=False).params({'w': jnp.zeros(3)})
  assert not (tmp_path / 'nowhere').exists()
  assert Checkpoints(tmp_path, higher_is_better=False).restore(None) is None


def scripted(*scores):
  left = iter(scores)
  return lambda params: {'loss': next(left)}


def test_patience_stops_and_stays_stopped(tmp_path, capsys):
  run = Toy(tmp_path, validate=scripted(3, 2, 2.1, 2.5, 1), patience=2, total=30).train()
  assert 'No better loss in 2 validations' in capsys.readouterr().out
  assert run.steps()[-1] == 12 and run.best()[1] == 6
  before = tree(tmp_path)
  Toy(tmp_path, validate=scripted(), patience=2, total=30).train()
  assert 'The run is complete.' in capsys.readouterr().out and tree(tmp_path) == before


def test_patience_counts_over_an_interruption(tmp_path):
  with pytest.raises(loop.Interrupted):
    Toy(tmp_path, validate=scripted(3, 2, 2.1), patience=2, total=30, at=killed_at(9)).train()
  assert Toy(tmp_path, validate=scripted(2.5, 1), patience=2, total=30).train().steps()[-1] == 12


def test_a_score_that_is_no_number_is_never_the_best(tmp_path):
  run = Toy(tmp_path, validate=scripted(np.nan, 2, 1, np.nan)).train()
  assert run.best()[1] == 9 and run.restored()[1]['best'] == 1


def test_a_monitor_that_is_no_score(tmp_path):
  with pytest.raises(
    UserError, match=r"train.monitor='bleu_4' is not among the validation scores \['loss'\]"
  ):
    Toy(tmp_path, monitor='bleu_4').train()


# Logs


def scalars(folder):
  found = EventAccumulator(str(folder / 'tensorboard'), size_guidance={'scalars': 0}).Reload()
  result = {}
  for tag in found.Tags()['scalars']:
    result[tag] = [(e.step, e.value) for e in found.Scalars(tag)]
  return result


def test_tensorboard_has_what_metrics_have(whole):
  wanted = {}
  for line in (whole.folder / 'metrics.jsonl').read_text().splitlines():
    row = json.loads(line)
    for name in row.keys() - {'step', 'kind'}:
      wanted.setdefault(f'{row["kind"]}/{name}', []).append(
        (row['step'], pytest.approx(row[name], rel=1e-6))
      )
  assert {
    'train/loss',
    'train/gradient_norm',
    'train/learning_rate',
    'train/examples_per_second',
    'valid/loss',
  } <= wanted.keys()
  assert scalars(whole.folder) == wanted
  assert [step for step, _ in wanted['train/loss']] == [2, 4, 6, 8, 10]
  assert [step for step, _ in wanted['valid/loss']] == [3, 6, 9, 10]


@pytest.mark.parametrize('steps, saved', [(2, 0), (5, 3)])
def test_what_a_killed_run_logged_after_its_checkpoint_stands_once(
  whole, tmp_path, monkeypatch, steps, saved
):
  """Killed after `steps` steps: its last lines are written again when the steps are done again."""

  def kill(number):
    if number == steps:
      raise KeyboardInterrupt

  clock = iter(range(1_000_000_000, 2_000_000_000))  # event files are named by the second
  event_time = types.SimpleNamespace(time=lambda: next(clock))
  monkeypatch.setattr('tensorboardX.event_file_writer.time', event_time)
  with pytest.raises(KeyboardInterrupt):
    Toy(tmp_path, at=kill).train()
  run = Toy(tmp_path)
  assert run.steps() == ([saved] if saved else [])
  with open(tmp_path / 'metrics.jsonl', 'a') as file:
    file.write('{"step": 3, "kind": "tr')  # killed in the middle of a line
  run.train()
  assert run.metrics() == whole.metrics() and equal(run.restored()[0], whole.restored()[0])
  names = ('train/loss', 'valid/loss')
  assert [scalars(tmp_path)[n] for n in names] == [scalars(whole.folder)[n] for n in names]
