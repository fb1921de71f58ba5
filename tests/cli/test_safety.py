"""What stands between a run and what may stop it: checksums, watchdogs, exit codes, files that a killed process left."""

import errno
import fcntl
import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT
from toy_run import BATCH, COUNT, TOTAL, Toy, close, equal, killed_at

from mmlm.data import batching
from mmlm.data.pipeline import Loader, LostLoader, Table, stream
from mmlm.training import checksums, loop
from mmlm.training.checkpoints import REMOVED, Checkpoints
from mmlm.training.metric_writer import Log
from mmlm.training.step import TrainState, train_step
from mmlm.utils import run_dir as runs
from mmlm.utils.errors import UserError
from mmlm.utils.pytree import misfits
from mmlm.utils.watchdog import STUCK, Watch


class Skipping(Toy):
  """The toy with updates that may be skipped; the pictures of the batches `bad` are infinite."""

  def __init__(self, folder, bad=(), skip=True, **options):
    super().__init__(folder, **options)
    self.bad_ones = bad
    self.parts = self.parts._replace(options=self.parts.options._replace(skip=skip))

  def stream(self, start, stop):
    return _Spoilt(super().stream(start, stop), start, self.bad_ones)


class _Spoilt:
  def __init__(self, inner, number, bad):
    self.inner = inner
    self.number = number
    self.bad = bad

  def __enter__(self):
    batches = enumerate(self.inner.__enter__(), self.number)
    return (
      batch | {'image': np.full_like(batch['image'], np.inf)} if number in self.bad else batch
      for number, batch in batches
    )

  def __exit__(self, *error):
    return self.inner.__exit__(*error)


# Checksums


def flip(file):
  data = bytearray(file.read_bytes())
  data[len(data) // 2] ^= 1
  file.write_bytes(data)


def test_a_changed_byte_of_any_file_is_seen(copy):
  step = copy / 'checkpoints' / '10'
  items = {'params', 'ema', 'rest', 'meta', 'metrics'}
  files = []
  for item in items:
    for p in (step / item).rglob('*'):
      if p.is_file() and p.stat().st_size:
        files.append(p)
  assert len(files) > 10 and checksums.damage(step, items) == ''
  for file in [*files, step / checksums.FILE]:
    whole = file.read_bytes()
    flip(file)
    assert file.name in checksums.damage(step, items), file
    file.write_bytes(whole)
  files[0].unlink()
  assert 'is missing' in checksums.damage(step, items)


def test_a_changed_byte_of_an_array_is_said_and_the_step_before_taken(whole, copy, capsys):
  """One that orbax reads without a word."""
  (_, file) = max(
    (p.stat().st_size, p) for p in (copy / 'checkpoints' / '10' / 'ema' / 'd').iterdir()
  )
  flip(file)
  with pytest.raises(UserError, match=r'10 cannot be read .*checksum.*Steps that can: \[9\]'):
    Toy(copy).best('latest')
  run = Toy(copy).train()
  assert 'Checkpoint 10 cannot be read' in capsys.readouterr().out
  assert equal(run.restored()[0], whole.restored()[0]) and run.metrics() == whole.metrics()


@pytest.mark.parametrize('summed', [True, False], ids=['with checksums', 'older'])
@pytest.mark.parametrize('content', [b'', b'\xce{', b'{"lo'], ids=['empty', 'no text', 'half'])
def test_damaged_metrics_do_not_stop_the_start(whole, copy, summed, content):
  """Orbax reads those of all steps when it begins."""
  for step in (9, 10):
    (copy / 'checkpoints' / str(step) / 'metrics' / 'metrics').write_bytes(content)
    if not summed:
      (copy / 'checkpoints' / str(step) / checksums.FILE).unlink()
  run = Toy(copy)
  if summed:
    with pytest.raises(
      UserError, match='(?s)no checkpoint can be read.*10: metrics/metrics.*9: metrics/metrics'
    ):
      run.train()
  else:
    assert equal(run.restored()[0], whole.restored()[0])


def test_a_checkpoint_older_than_checksums_is_read(whole, copy):
  for step in (9, 10):
    (copy / 'checkpoints' / str(step) / checksums.FILE).unlink()
  assert equal(Toy(copy).restored()[0], whole.restored()[0])


@pytest.mark.parametrize(
  'change, says',
  [
    ({'w': jnp.zeros((4, 4)), 'b': jnp.zeros(())}, r'params/w: \(16,\) -> \(4, 4\)'),
    ({'w': jnp.zeros(16, jnp.bfloat16), 'b': jnp.zeros(())}, 'params/w: float32 -> bfloat16'),
    ({'w': jnp.zeros(16)}, r'params/b: \(\) -> absent'),
    ({'w': jnp.zeros(16), 'b': jnp.zeros(()), 'c': jnp.zeros(3)}, r'params/c: absent -> \(3,\)'),
  ],
  ids=['shape', 'type', 'too many', 'too few'],
)
def test_arrays_that_do_not_fit_are_named_and_nothing_is_moved(copy, change, says):
  state = Toy(copy).state
  checkpoints = Checkpoints(copy / 'checkpoints', higher_is_better=False)
  with pytest.raises(UserError, match=f'(?s)10 holds other arrays.*{says}'):
    checkpoints.restore(state._replace(params=change))
  with pytest.raises(
    UserError, match=f'(?s)10 holds other arrays.*{says.replace("params", "ema")}'
  ):
    checkpoints.params(change, 'latest')
  assert checkpoints.steps() == [9, 10]


def test_misfits_are_none_where_trees_agree():
  tree = {'a': np.zeros(3, np.float32), 'b': np.int32(1)}
  assert misfits(tree, {name: jnp.asarray(leaf) for name, leaf in tree.items()}) == []


def test_a_step_that_goes_is_renamed_first(tmp_path):
  """Killed while it is removed, it would be seen in part."""
  checkpoints = Checkpoints(tmp_path, keep_latest=1, higher_is_better=False)
  state = TrainState(jnp.array(1), {'w': jnp.zeros(3)}, (), (), jnp.zeros(2, jnp.uint32))
  left = tmp_path / REMOVED / '7' / 'params'
  for step in (1, 2):
    checkpoints.save(state._replace(step=jnp.array(step)), {}, {'loss': 1.0 / step})
    checkpoints.wait()
    assert checkpoints.steps() == [step]
  checkpoints.close()
  assert not (tmp_path / REMOVED).exists()
  left.mkdir(parents=True)  # of a killed process
  Checkpoints(tmp_path, writing=False, higher_is_better=False)
  assert left.exists()
  Checkpoints(tmp_path, higher_is_better=False)
  assert not left.exists()


# Updates that are not finite


def test_a_healthy_run_has_the_same_bits_whether_it_may_skip_or_not(whole, tmp_path):
  run = Skipping(tmp_path).train()
  (state, meta), (wanted, wanted_meta) = run.restored(), whole.restored()
  assert equal(state, wanted) and meta == wanted_meta and run.metrics() == whole.metrics()


def test_a_skipped_update_leaves_the_state_and_is_counted(tmp_path, capsys):
  run = Skipping(tmp_path, bad=(4, 5, 8), total=9).train()
  state, meta = run.restored()
  wanted = Toy(tmp_path).state
  options = run.parts.options
  step = jax.jit(lambda state, batch: train_step(state, batch, options._replace(skip=False))[0])
  with Toy(tmp_path).stream(0, 9) as batches:
    for number, batch in enumerate(batches):
      if number in run.bad_ones:
        wanted = wanted._replace(step=wanted.step + 1)
      else:
        wanted = step(wanted, batch)
  assert close(state, jax.device_get(wanted), 1e-6) and int(state.step) == 9
  assert meta['skipped'] == 3 and meta['skipped_in_a_row'] == 1
  rows = {row['step']: row for row in run.metrics() if row['kind'] == 'train'}
  assert (
    'skipped' not in rows[4]
    and rows[6]['skipped'] == 2
    and 'loss' not in rows[6]
    and rows[9]['skipped'] == 3
  )
  assert (
    np.isfinite(rows[8]['loss'])
    and 'step 5: the loss is' in (said := capsys.readouterr().out)
    and 'The update is skipped (3 so far)' in said
  )


def test_too_many_skipped_in_a_row_stop_also_over_an_interruption(tmp_path):
  bad = (1, 2, 4, 5, 6)
  with pytest.raises(loop.Interrupted):
    Skipping(tmp_path, bad, at=killed_at(5)).train()
  run = Skipping(tmp_path, bad)
  with pytest.raises(
    UserError, match='step 7: the loss.*3 updates were skipped in a row.*examples of this batch'
  ):
    run.train()
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(run.restored()[0]))


# Watchdogs


def test_what_is_slow_is_named_with_its_step_batch_and_example(tmp_path, capfd):
  run = Toy(tmp_path, total=2, at=lambda number: time.sleep(0.8 * (number == 1)))
  run.parts = run.parts._replace(watch=Watch(0.2))
  run.train()
  said = capfd.readouterr().err
  ids = [run.source[i]['id'] for i in run.plan[1].indices]
  slow = int(run.plan[0].indices[2])
  assert 'step 2 needs its batch' in said and all(name in said for name in ids[:5])
  run.loader.watch = Watch(0.2)
  run.loader.source = _Slow(run.source, slow)
  run.loader(0, run.plan[0])
  assert f"batch 1: 'e{slow}' is read" in capfd.readouterr().err


class _Slow:
  def __init__(self, source, slow):
    self.source = source
    self.slow = slow

  def __getitem__(self, i):
    time.sleep(0.8 * (i == self.slow))
    return self.source[i]


def test_what_never_comes_ends_the_process():
  code = 'import time; from mmlm.watch import Watch\nwith Watch(0.1, 0.5)(lambda: "step 7"): time.sleep(60)'
  done = subprocess.run(
    [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, timeout=50
  )
  assert (
    done.returncode == STUCK
    and 'still waiting after' in done.stderr
    and 'step 7: nothing for' in done.stderr
  )


def test_a_watch_of_nothing_says_nothing(capfd):
  with Watch()(lambda: 'never'):
    time.sleep(0.6)
  with Watch(30.0)(lambda: 'never'):
    time.sleep(0.6)
  assert capfd.readouterr().err == ''


# Loader processes


def loader_of(count=COUNT):
  table = Table(
    [f'e{i}' for i in range(count)], np.arange(count), [[i % 7] for i in range(count)], [[]] * count
  )
  return Loader([{'id': f'e{i}'} for i in range(count)], table, (), [], BATCH), batching.TrainPlan(
    table.lengths, BATCH, (2,), seed=1
  )


def test_a_loader_that_was_killed_is_told_and_one_that_is_asked_to_end_finishes():
  loader, plan = loader_of()
  with stream(plan, loader, 0, 400, workers=1) as batches:
    next(batches)
    (process,) = multiprocessing.active_children()
    process.terminate()
    time.sleep(0.5)
    assert process.is_alive() and len([next(batches) for _ in range(20)]) == 20
    process.kill()
    with pytest.raises(LostLoader, match='a loader process ended before its time .*exit code -9'):
      list(batches)


ORPHANS = """
import multiprocessing, os, signal, sys
sys.path[:0] = [{tests!r}, {root!r}]
from absl import flags
from test_safety import loader_of, stream
if __name__ == '__main__':
  flags.FLAGS.mark_as_parsed()
  loader, plan = loader_of()
  with stream(plan, loader, 0, 400, workers=1) as batches:
    next(batches)
    print(*[process.pid for process in multiprocessing.active_children()], flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_main_process_that_is_killed_leaves_no_loader(tmp_path):
  script = tmp_path / 'main.py'
  script.write_text(ORPHANS.format(tests=str(ROOT / 'tests'), root=str(ROOT)))
  with open(tmp_path / 'out', 'w+') as out:  # no pipe, which a loader would hold open
    assert (
      subprocess.run([sys.executable, script], stdout=out, timeout=200).returncode
      == -signal.SIGKILL
    )
    out.seek(0)
    loaders = [int(word) for word in out.read().split()]
  assert len(loaders) == 1
  for _ in range(100):
    if not alive(loaders[0]):
      return
    time.sleep(0.1)
  raise AssertionError('the loader lives on')


def alive(number: int) -> bool:
  try:
    return pathlib.Path(f'/proc/{number}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
  except FileNotFoundError:
    return False


# Signals and files


@pytest.mark.parametrize('how, code', [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_preemption_has_an_exit_code_of_its_own(tmp_path, how, code):
  with pytest.raises(loop.Interrupted) as caught:
    Toy(tmp_path, at=killed_at(1, how)).train()
  assert caught.value.code == code
  before = signal.getsignal(signal.SIGTERM)
  with pytest.raises(SystemExit) as caught, loop.preemptible():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(5)
  assert caught.value.code == 75 and signal.getsignal(signal.SIGTERM) is before


def test_what_a_killed_writer_left_goes_with_the_next_writing(tmp_path):
  path = tmp_path / 'scores.json'
  left = tmp_path / '.scores.json.abc.tmp'
  held = tmp_path / '.scores.json.def.tmp'
  other = tmp_path / '.other.json.abc.tmp'
  for file in (left, held, other):
    file.write_text('half')
  with open(held) as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    runs.write_json(path, {'a': 1})
    assert {p.name for p in tmp_path.iterdir()} == {path.name, held.name, other.name}
  runs.write_json(path, {'a': 2})
  assert {p.name for p in tmp_path.iterdir()} == {path.name, other.name} and runs.read_json(
    path
  ) == {'a': 2}


@pytest.mark.parametrize('what', ['write_event', 'flush'])
def test_no_space_for_a_line_stops_and_the_run_goes_on_later(whole, tmp_path, monkeypatch, what):
  def full(*args):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  def full_disk(number):
    if number == 5:
      monkeypatch.setattr(f'tensorboardX.event_file_writer.EventsWriter.{what}', full)

  with pytest.raises(
    UserError, match='no space left on the disk.*metrics.jsonl.*start the same command again'
  ):
    Toy(tmp_path, at=full_disk).train()
  monkeypatch.undo()
  run = Toy(tmp_path).train()
  assert (
    equal(run.restored()[0], whole.restored()[0])
    and run.metrics() == whole.metrics()
    and run.steps()[-1] == TOTAL
  )


def test_a_line_of_skipped_steps_alone_has_no_loss(tmp_path):
  log = Log(tmp_path, 0)
  progress = loop.Progress(0, 4)
  log.write('train', 2, progress.line(2))
  log.close()
  (row,) = runs.read_jsonl(tmp_path / 'metrics.jsonl')
  assert row.keys() == {'step', 'kind', 'seconds', 'examples_per_second'}
