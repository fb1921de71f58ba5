"""Checkpoints that are damaged, a full disk and a loss that is no number, on a toy (toy_run.py)."""

import errno
import os
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from toy_run import Toy, equal, fill, tree, value

from mmlm.training.checkpoints import Checkpoints
from mmlm.utils import run_dir as runs
from mmlm.utils.errors import UserError

# Damage


def parts_of(folder, step, item='params'):
  return sorted(
    (p for p in (folder / 'checkpoints' / str(step) / item).rglob('d/*') if p.is_file()),
    key=lambda p: p.stat().st_size,
  )


def truncate(folder, step):
  for item in ('params', 'ema', 'rest'):
    for file in parts_of(folder, step, item):
      os.truncate(file, file.stat().st_size // 2)


def empty(folder, step):
  for file in parts_of(folder, step):
    file.write_bytes(b'')


def lose_metadata(folder, step):
  (folder / 'checkpoints' / str(step) / 'rest' / '_METADATA').unlink()


def lose_item(folder, step):
  shutil.rmtree(folder / 'checkpoints' / str(step) / 'ema')


def lose_meta(folder, step):
  (folder / 'checkpoints' / str(step) / 'meta' / 'metadata').write_text('{')


@pytest.mark.parametrize('damage', [truncate, empty, lose_metadata, lose_item, lose_meta])
def test_a_damaged_checkpoint_is_said_and_the_one_before_taken(whole, copy, damage, capsys):
  assert whole.steps() == [9, 10]
  damage(copy, 10)
  run = Toy(copy).train()
  said = capsys.readouterr().out
  assert (
    'Checkpoint 10 cannot be read' in said
    and 'moved to damaged-10' in said
    and 'Resumed at step 9 of 10' in said
  )
  assert equal(run.restored()[0], whole.restored()[0]) and run.metrics() == whole.metrics()
  assert (copy / 'checkpoints' / 'damaged-10').is_dir() and run.steps() == [9, 10]


def test_a_step_may_be_damaged_twice(copy):
  for name in ('damaged-10', 'damaged-10-again'):
    truncate(copy, 10)
    run = Toy(copy).train()
    assert (copy / 'checkpoints' / name).is_dir() and run.steps() == [9, 10]


def test_when_none_can_be_read_nothing_is_moved(copy):
  for step in (9, 10):
    truncate(copy, step)
  before = tree(copy)
  with pytest.raises(
    UserError, match='(?s)no checkpoint can be read.*10: .*9: .*another --workdir'
  ):
    Toy(copy).train()
  assert tree(copy) == before


def test_evaluation_says_which_steps_are_good(tmp_path):
  fill(tmp_path / 'checkpoints', [1, 2, 3, 4], keep_latest=4)
  for step in (2, 4):
    truncate(tmp_path, step)
  checkpoints = Checkpoints(tmp_path / 'checkpoints', writing=False, higher_is_better=False)
  with pytest.raises(
    UserError, match=r'checkpoints/4 cannot be read .*Steps that can: \[1, 3\]; choose one'
  ):
    value(checkpoints, 'latest')
  assert value(checkpoints, 3) == (3, 3)
  for step in (1, 3):
    truncate(tmp_path, step)
  with pytest.raises(UserError, match='Steps that can: none'):
    value(checkpoints, 4)


def test_what_a_killed_writer_left_is_cleared_by_training_only(copy):
  """Evaluation may look at a run while its training writes."""
  left = copy / 'checkpoints' / '12.orbax-checkpoint-tmp'
  shutil.copytree(copy / 'checkpoints' / '10', left)
  run = Toy(copy, total=12)
  assert run.steps() == [9, 10] and run.best('latest')[1] == 10 and left.is_dir()
  assert run.train().steps()[-1] == 12 and not left.exists()


# A full disk


def full(*args, **kwargs):
  raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_in_words(*args, **kwargs):
  raise ValueError('RESOURCE_EXHAUSTED: Error writing local file: No space left on device')


def full_in_the_background(self, wait=ocp.CheckpointManager.wait_until_finished):
  wait(self)
  full()


@pytest.mark.parametrize(
  'method, error',
  [
    ('save', full),
    ('save', full_in_words),
    ('wait_until_finished', full_in_the_background),
  ],
)
def test_no_space_for_a_checkpoint(whole, tmp_path, monkeypatch, method, error):
  def full_disk(number):
    if number == 7:
      monkeypatch.setattr(ocp.CheckpointManager, method, error)

  run = Toy(tmp_path, at=full_disk)
  with pytest.raises(
    UserError, match='no space left on the disk.*older ones are whole.*start the same command again'
  ):
    run.train()
  monkeypatch.undo()
  assert 3 in run.steps()
  run = Toy(tmp_path).train()
  assert equal(run.restored()[0], whole.restored()[0]) and run.metrics() == whole.metrics()


def test_other_errors_of_a_checkpoint_are_not_a_full_disk(tmp_path, monkeypatch):
  def broken(*args, **kwargs):
    raise ValueError('a bug')

  monkeypatch.setattr(ocp.CheckpointManager, 'save', broken)
  with pytest.raises(ValueError, match='a bug'):
    Toy(tmp_path).train()


@pytest.mark.parametrize('call', ['fsync', 'replace'])
def test_no_space_for_a_file_leaves_the_old_one(tmp_path, monkeypatch, call):
  path = tmp_path / 'scores.json'
  runs.write_json(path, {'old': 1})
  monkeypatch.setattr(os, call, full)
  with pytest.raises(OSError, match='No space left'):
    runs.write_json(path, {'new': 2})
  monkeypatch.undo()
  assert runs.read_json(path) == {'old': 1} and [p.name for p in tmp_path.iterdir()] == [
    'scores.json'
  ]


# A loss that is no number


@pytest.mark.parametrize('bad', [4, 5, 9])
def test_a_loss_that_is_no_number_stops_and_names_the_batch(whole, tmp_path, bad):
  """Before, at and after the steps of checkpoints: what is saved is good."""
  run = Toy(tmp_path, bad=bad)
  saved = bad // 3 * 3
  with pytest.raises(
    UserError, match=f'step {bad + 1}: the loss is (nan|inf).*checkpoint is kept .{saved}.'
  ) as caught:
    run.train()
  ids = {run.source[i]['id'] for i in run.plan[bad].indices}
  assert (
    set(str(caught.value).rpartition('batch: ')[2].rstrip('.').split(', ')) == ids and len(ids) >= 4
  )
  assert run.steps()[-1] == saved
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(run.restored()[0]))
  assert equal(Toy(tmp_path).train().restored()[0], whole.restored()[0])
