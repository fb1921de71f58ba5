"""Updates that are not finite, signals, a full disk, and the watchdog over the steps of a toy."""

import errno
import os
import signal
import time

import jax
import numpy as np
import pytest
from toy_run import TOTAL, Toy, close, equal, killed_at

from mmlm.training import loop
from mmlm.training.metric_writer import MetricWriter
from mmlm.training.step import train_step
from mmlm.utils import run_dir
from mmlm.utils.errors import UserError
from mmlm.utils.watchdog import Watch


class Skipping(Toy):
  """The toy with updates that may be skipped; the pictures of the batches `bad` are infinite."""

  def __init__(self, folder, bad=(), skip=True, **options):
    super().__init__(folder, **options)
    self.bad_ones = bad
    self.parts = self.parts._replace(options=self.parts.options._replace(skip=skip))

  def stream(self, start, stop):
    return InfinitePictures(super().stream(start, stop), start, self.bad_ones)


class InfinitePictures:
  """A stream from batch `number` on, in which the pictures of the batches `bad` are infinite."""

  def __init__(self, inner, number, bad):
    self.inner = inner
    self.number = number
    self.bad = bad

  def __enter__(self):
    return self._batches(self.inner.__enter__())

  def _batches(self, batches):
    for number, batch in enumerate(batches, self.number):
      if number in self.bad:
        batch = batch | {'image': np.full_like(batch['image'], np.inf)}
      yield batch

  def __exit__(self, *error):
    return self.inner.__exit__(*error)


# Updates that are not finite


def test_a_healthy_run_has_the_same_bits_whether_it_may_skip_or_not(whole, tmp_path):
  run = Skipping(tmp_path).train()
  state, meta = run.restored()
  expected_state, expected_meta = whole.restored()
  assert equal(state, expected_state)
  assert meta == expected_meta
  assert run.metrics() == whole.metrics()


def test_a_skipped_update_leaves_the_state_and_is_counted(tmp_path, capsys):
  run = Skipping(tmp_path, bad=(4, 5, 8), total=9).train()
  output = capsys.readouterr().out
  state, meta = run.restored()
  assert close(state, jax.device_get(state_without_bad_updates(run)), 1e-6)
  assert int(state.step) == 9
  assert meta['skipped'] == 3
  assert meta['skipped_in_a_row'] == 1
  lines = {line['step']: line for line in run.metrics() if line['kind'] == 'train'}
  assert 'skipped' not in lines[4]
  assert lines[6]['skipped'] == 2
  assert 'loss' not in lines[6]
  assert np.isfinite(lines[8]['loss'])
  assert lines[9]['skipped'] == 3
  assert 'step 5: the loss is' in output
  assert 'The update is skipped (3 so far)' in output


def state_without_bad_updates(run):
  """Returns the state after nine steps, of which those of bad batches only count."""
  options = run.parts.options._replace(skip=False)
  step = jax.jit(lambda state, batch: train_step(state, batch, options)[0])
  toy = Toy(run.folder)
  state = toy.state
  with toy.stream(0, 9) as batches:
    for number, batch in enumerate(batches):
      if number in run.bad_ones:
        state = state._replace(step=state.step + 1)
      else:
        state = step(state, batch)
  return state


def test_too_many_skipped_in_a_row_stop_also_over_an_interruption(tmp_path):
  bad = (1, 2, 4, 5, 6)
  with pytest.raises(loop.Interrupted):
    Skipping(tmp_path, bad, at=killed_at(5)).train()
  run = Skipping(tmp_path, bad)
  message = 'step 7: the loss.*3 updates were skipped in a row.*examples of this batch'
  with pytest.raises(UserError, match=message):
    run.train()
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(run.restored()[0]))


# Watchdog


def test_what_is_slow_is_named_with_its_step_batch_and_example(tmp_path, capfd):
  run = Toy(tmp_path, total=2, at=lambda number: time.sleep(0.8 * (number == 1)))
  run.parts = run.parts._replace(watch=Watch(0.2))
  run.train()
  errors = capfd.readouterr().err
  assert 'step 2 needs its batch' in errors
  for i in run.plan[1].indices[:5]:
    assert run.source[i]['id'] in errors
  slow = int(run.plan[0].indices[2])
  run.loader.watch = Watch(0.2)
  run.loader.source = SlowSource(run.source, slow)
  run.loader(0, run.plan[0])
  assert f"batch 1: 'e{slow}' is read" in capfd.readouterr().err


class SlowSource:
  """A source whose example `slow` takes most of a second."""

  def __init__(self, source, slow):
    self.source = source
    self.slow = slow

  def __getitem__(self, i):
    time.sleep(0.8 * (i == self.slow))
    return self.source[i]


# Signals and files


@pytest.mark.parametrize('how, code', [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_an_interruption_has_an_exit_code_of_its_own(tmp_path, how, code):
  with pytest.raises(loop.Interrupted) as caught:
    Toy(tmp_path, at=killed_at(1, how)).train()
  assert caught.value.code == code


def test_a_preemption_ends_the_process_and_restores_the_handler():
  before = signal.getsignal(signal.SIGTERM)
  with pytest.raises(SystemExit) as caught, loop.preemptible():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(5)
  assert caught.value.code == 75
  assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize('method', ['write_event', 'flush'])
def test_no_space_for_a_line_stops_and_the_run_can_be_resumed(whole, tmp_path, monkeypatch, method):
  def no_space(*args):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  def fill_the_disk(number):
    if number == 5:
      monkeypatch.setattr(f'tensorboardX.event_file_writer.EventsWriter.{method}', no_space)

  message = 'no space left on the disk.*metrics.jsonl.*start the same command again'
  with pytest.raises(UserError, match=message):
    Toy(tmp_path, at=fill_the_disk).train()
  monkeypatch.undo()
  run = Toy(tmp_path).train()
  assert equal(run.restored()[0], whole.restored()[0])
  assert run.metrics() == whole.metrics()
  assert run.steps()[-1] == TOTAL


def test_a_line_of_skipped_steps_alone_has_no_loss(tmp_path):
  writer = MetricWriter(tmp_path, 0)
  progress = loop.ProgressLine(0, 4)
  writer.write('train', 2, progress.print(2))
  writer.close()
  (line,) = run_dir.read_jsonl(tmp_path / 'metrics.jsonl')
  assert line.keys() == {'step', 'kind', 'seconds', 'examples_per_second'}
