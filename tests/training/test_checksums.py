"""Checksums of checkpoints: a changed file is found, and the checkpoint before is taken."""

import jax.numpy as jnp
import numpy as np
import pytest
from toy_run import Toy, equal

from mmlm.training import checksums
from mmlm.training.checkpoints import REMOVED, Checkpoints
from mmlm.training.step import TrainState
from mmlm.utils.errors import UserError
from mmlm.utils.pytree import misfits

ITEMS = {'params', 'ema', 'rest', 'meta', 'metrics'}


def flip_a_bit(file):
  data = bytearray(file.read_bytes())
  data[len(data) // 2] ^= 1
  file.write_bytes(data)


def test_a_changed_byte_of_any_file_is_found(copy):
  step = copy / 'checkpoints' / '10'
  files = []
  for item in ITEMS:
    for path in (step / item).rglob('*'):
      if path.is_file() and path.stat().st_size:
        files.append(path)
  assert len(files) > 10
  assert checksums.damage(step, ITEMS) == ''
  for file in [*files, step / checksums.FILE]:
    content = file.read_bytes()
    flip_a_bit(file)
    assert file.name in checksums.damage(step, ITEMS), file
    file.write_bytes(content)
  files[0].unlink()
  assert 'is missing' in checksums.damage(step, ITEMS)


def test_a_checkpoint_with_a_changed_array_is_replaced_by_the_one_before(whole, copy, capsys):
  """Orbax reads such an array without an error."""
  arrays = (copy / 'checkpoints' / '10' / 'ema' / 'd').iterdir()
  flip_a_bit(max(arrays, key=lambda path: path.stat().st_size))
  with pytest.raises(UserError, match=r'10 cannot be read .*checksum.*Steps that can: \[9\]'):
    Toy(copy).best('latest')
  run = Toy(copy).train()
  assert 'Checkpoint 10 cannot be read' in capsys.readouterr().out
  assert equal(run.restored()[0], whole.restored()[0])
  assert run.metrics() == whole.metrics()


@pytest.mark.parametrize('has_checksums', [True, False], ids=['with checksums', 'older'])
@pytest.mark.parametrize('content', [b'', b'\xce{', b'{"lo'], ids=['empty', 'no text', 'half'])
def test_damaged_metrics_do_not_stop_the_start(whole, copy, has_checksums, content):
  """Orbax reads those of all steps when it begins."""
  for step in ('9', '10'):
    folder = copy / 'checkpoints' / step
    (folder / 'metrics' / 'metrics').write_bytes(content)
    if not has_checksums:
      (folder / checksums.FILE).unlink()
  run = Toy(copy)
  if has_checksums:
    message = '(?s)no checkpoint can be read.*10: metrics/metrics.*9: metrics/metrics'
    with pytest.raises(UserError, match=message):
      run.train()
  else:
    assert equal(run.restored()[0], whole.restored()[0])


def test_a_checkpoint_without_checksums_is_read(whole, copy):
  for step in ('9', '10'):
    (copy / 'checkpoints' / step / checksums.FILE).unlink()
  assert equal(Toy(copy).restored()[0], whole.restored()[0])


@pytest.mark.parametrize(
  'params, message',
  [
    ({'w': jnp.zeros((4, 4)), 'b': jnp.zeros(())}, r'params/w: \(16,\) -> \(4, 4\)'),
    ({'w': jnp.zeros(16, jnp.bfloat16), 'b': jnp.zeros(())}, 'params/w: float32 -> bfloat16'),
    ({'w': jnp.zeros(16)}, r'params/b: \(\) -> absent'),
    ({'w': jnp.zeros(16), 'b': jnp.zeros(()), 'c': jnp.zeros(3)}, r'params/c: absent -> \(3,\)'),
  ],
  ids=['shape', 'type', 'too many', 'too few'],
)
def test_arrays_of_other_shapes_are_named_and_no_checkpoint_is_moved(copy, params, message):
  state = Toy(copy).state
  checkpoints = Checkpoints(copy / 'checkpoints', higher_is_better=False)
  with pytest.raises(UserError, match=f'(?s)10 holds other arrays.*{message}'):
    checkpoints.restore(state._replace(params=params))
  message = message.replace('params', 'ema')
  with pytest.raises(UserError, match=f'(?s)10 holds other arrays.*{message}'):
    checkpoints.params(params, 'latest')
  assert checkpoints.steps() == [9, 10]


def test_equal_trees_have_no_misfits():
  tree = {'a': np.zeros(3, np.float32), 'b': np.int32(1)}
  others = {name: jnp.asarray(leaf) for name, leaf in tree.items()}
  assert misfits(tree, others) == []


def test_an_old_checkpoint_is_renamed_before_it_is_removed(tmp_path):
  """A process that is killed while it removes one would leave it in part."""
  checkpoints = Checkpoints(tmp_path, keep_latest=1, higher_is_better=False)
  state = TrainState(jnp.array(1), {'w': jnp.zeros(3)}, (), (), jnp.zeros(2, jnp.uint32))
  for step in (1, 2):
    checkpoints.save(state._replace(step=jnp.array(step)), {}, {'loss': 1.0 / step})
    checkpoints.wait()
    assert checkpoints.steps() == [step]
  checkpoints.close()
  assert not (tmp_path / REMOVED).exists()
  of_killed_process = tmp_path / REMOVED / '7' / 'params'
  of_killed_process.mkdir(parents=True)
  Checkpoints(tmp_path, writing=False, higher_is_better=False)
  assert of_killed_process.exists()
  Checkpoints(tmp_path, higher_is_better=False)
  assert not of_killed_process.exists()
