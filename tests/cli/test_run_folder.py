"""One small run through the program: what it leaves, evaluation, prediction, and what harms it."""

import errno
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from conftest import ROOT
from program import LONG, Place, cli, done, metrics, read_jsonl, refused, rows, tree, write_jsonl

PICTURES = ('3.png', '4.png')


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  place = Place(tmp_path_factory.mktemp('place'))
  (place.folder / 'broken.png').write_bytes(b'\x89PNG no picture')
  (place.folder / 'zero.png').write_bytes(b'')
  return place


@pytest.fixture(scope='module')
def run(place):
  """A run that was trained without interruption, evaluated and reported."""
  folder = place.folder / 'run'
  (place.folder / 'output.txt').write_text(done(*place.argv(folder)))
  done('evaluate', folder)
  done('report', folder)
  return folder


@pytest.fixture
def copy(run, tmp_path):
  shutil.copytree(run, tmp_path / 'copy')
  return tmp_path / 'copy'


# The run folder


def test_training_prints_and_logs_its_steps(place, run):
  output = (place.folder / 'output.txt').read_text()
  for part in ('cpu', 'Python 3.', 'jax ', 'step     30/30 100 %', 'examples/s'):
    assert part in output
  logged = metrics(run)
  assert [line['step'] for line in logged if line['kind'] == 'train'] == list(range(2, 31, 2))
  assert [line['step'] for line in logged if line['kind'] == 'valid'] == list(range(3, 31, 3))
  assert logged[-2]['loss'] < 0.7 * logged[0]['loss']


def test_a_run_folder_holds_its_config_and_environment(run):
  names = {path.name for path in run.iterdir()}
  assert names >= {'config.json', 'environment.json', 'metrics.jsonl', 'tokenizer.json'}
  assert 'report.html' in names
  config = json.loads((run / 'config.json').read_text())
  assert config['optimizer']['learning_rate'] == 0.01
  environment = json.loads((run / 'environment.json').read_text())
  assert environment['versions'].keys() >= {'jax', 'flax', 'orbax-checkpoint'}
  assert environment['devices']['platform'] == 'cpu'


def test_every_example_is_predicted_once_with_its_whole_reference(run):
  paths = (run / 'predictions').iterdir()
  (path,) = [path for path in paths if 'shuffled' not in path.name]
  references = {line['id']: line['references'] for line in read_jsonl(path)}
  assert references.keys() == {f'e{i}' for i in range(20, 28)} | {'long'}
  assert references['long'] == [LONG]
  assert references['e20'] == [rows(1, 20)[0]['target']]
  scores = json.loads((run / 'scores' / f'{path.stem}.json').read_text())
  assert scores['n'] == 9
  assert scores['scores']['word_f1'].keys() == {'value', 'low', 'high'}
  assert (run / 'scores' / f'{path.stem}-shuffled.json').exists()


def without_environment(folder: pathlib.Path) -> dict[str, bytes]:
  """Returns the files of a run but environment.json, which every start writes."""
  contents = tree(folder)
  del contents['environment.json']
  return contents


def test_training_a_complete_run_changes_nothing(place, copy):
  before = without_environment(copy)
  assert 'The run is complete.' in done(*place.argv(copy))
  assert without_environment(copy) == before


def test_a_run_of_another_config_is_not_changed(place, run):
  before = tree(run)
  changes = ['optimizer.learning_rate=3e-4', 'model.dim=32', 'train.log_every=5 steps']
  error = refused(*place.argv(run, *(f'--config.{change}' for change in changes)))
  assert 'holds a run of another config' in error
  assert 'optimizer.learning_rate: 0.01 -> 0.0003' in error
  assert 'model.dim: 16 -> 32' in error
  assert 'log_every' not in error  # may change when a run is resumed
  assert tree(run) == before


def test_a_folder_that_is_no_run_is_not_changed(place, tmp_path):
  (tmp_path / 'letter.txt').write_text('dear')
  assert 'is not empty and holds no run' in refused(*place.argv(tmp_path))
  assert 'Not a directory' in refused(*place.argv(tmp_path / 'letter.txt'))
  for command in (['evaluate'], ['predict', '--input', place.folder / '0.png'], ['report']):
    for folder in (tmp_path, tmp_path / 'nowhere'):
      error = refused(command[0], folder, *command[1:])
      assert 'not a run folder (no config.json)' in error
  assert [path.name for path in tmp_path.iterdir()] == ['letter.txt']


def test_a_run_without_a_checkpoint_is_not_changed(place, copy):
  shutil.rmtree(copy / 'checkpoints')
  before = tree(copy)
  assert 'no checkpoint. Train first' in refused('evaluate', copy)
  picture = place.folder / '0.png'
  assert 'no checkpoint. Train first' in refused('predict', copy, '--input', picture)
  assert tree(copy) == before
  assert not (copy / 'checkpoints').exists()


def test_a_config_of_a_run_that_was_edited_badly(copy):
  path = copy / 'config.json'
  path.write_text(path.read_text().replace('"batch_size"', '"batch_sise"', 1))
  assert 'batch_sise: unknown key. Nearest' in refused('report', copy)
  path.write_text('{"task":\n')
  assert 'config.json, line 2, column 1: not JSON' in refused('report', copy)


# Evaluation and prediction


@pytest.mark.parametrize(
  'words, message',
  [
    (['--splits=nowhere.jsonl'], 'nowhere.jsonl'),
    (['--config.evaluate.average=9'], 'evaluate.average=9, but'),
    (['--config.evaluate.average=0'], 'evaluate.average=0: expected 1 or more'),
    (['--config.evaluate.checkpoint=5'], "evaluate.checkpoint='5': not in"),
    (['--config.evaluate.checkpoint=newest'], "Or 'best', 'latest'"),
    (['--config.evaluate.metrics=("blue",)'], "evaluate.metrics: no 'blue'. Nearest: 'bleu"),
    (['--config.decoding.beam=2'], 'Nearest: --config.decoding.beam_size'),
  ],
)
def test_an_impossible_evaluation_writes_nothing(run, words, message):
  before = tree(run)
  assert message in refused('evaluate', run, *words)
  assert tree(run) == before


def test_evaluation_on_another_manifest_with_another_search(place, copy):
  manifest = write_jsonl(place.folder / 'other.jsonl', rows(3, 5))
  words = ['--greedy', '--config.evaluate.checkpoint=latest', '--config.evaluate.average=3']
  output = done(
    'evaluate', copy, f'--splits={manifest}', '--config.evaluate.shuffled=False', *words
  )
  assert 'other.jsonl (greedy), 3 examples, step 30' in output
  assert 'shuffled' not in output
  scores = json.loads((copy / 'scores' / 'other-30-greedy.json').read_text())
  assert scores['average'] == 3
  assert scores['decoding']['method'] == 'greedy'
  predictions = read_jsonl(copy / 'predictions' / 'other-30-greedy.jsonl')
  assert [line['id'] for line in predictions] == ['e5', 'e6', 'e7']


def test_a_folder_a_manifest_and_one_picture_are_predicted_alike(place, run, tmp_path):
  """The one picture by a strategy of many devices."""
  deep = tmp_path / 'pictures' / 'deep'
  deep.mkdir(parents=True)
  for name in PICTURES:
    shutil.copy(place.folder / name, deep)
  (deep / 'note.txt').write_text('no picture')
  out = tmp_path / 'new' / 'out.jsonl'
  output = done('predict', run, '--input', tmp_path / 'pictures', '--output', out)
  third, fourth = (line['hypothesis'] for line in read_jsonl(out))
  assert output == f'deep/3.png\t{third}\ndeep/4.png\t{fourth}\n'
  lines = [{'id': 'b', 'image': '4.png'}, {'id': 'a', 'image': '3.png'}]
  manifest = write_jsonl(place.folder / 'no_targets.jsonl', lines)
  assert done('predict', run, '--input', manifest) == f'b\t{fourth}\na\t{third}\n'
  picture = place.folder / '3.png'
  output = done('predict', run, '--input', picture, '--config.parallel.strategy=pmap')
  assert output == f'3.png\t{third}\n'


def test_what_is_no_picture_is_named(place, run, tmp_path):
  def error_of(path, *words):
    return refused('predict', run, '--input', path, *words)

  assert 'no such file or folder' in error_of(tmp_path / 'nowhere.png')
  assert 'no picture' in error_of(tmp_path)
  shutil.copy(place.folder / '0.png', tmp_path)
  out = tmp_path / 'out.jsonl'
  for name, message in (
    ('broken.png', "'broken.png': the picture can't be decoded"),
    ('zero.png', "the picture of 'zero.png' has zero bytes"),
  ):
    shutil.copy(place.folder / name, tmp_path)
    assert message in error_of(tmp_path, '--output', out)
    assert message in error_of(tmp_path / name)
    (tmp_path / name).unlink()
  line = {'id': 'z', 'image': str(place.folder / 'zero.png')}
  manifest = write_jsonl(tmp_path / 'zero.jsonl', [line])
  assert "the picture of 'z' has zero bytes" in error_of(manifest)
  assert "can't be decoded" in error_of(place.config)
  assert not out.exists()


def test_a_second_modality_is_one_line_of_config(place, tmp_path):
  folder = tmp_path / 'run'
  valid = write_jsonl(place.folder / 'both.jsonl', rows(8, 20))
  assert "line 9: no 'text'" in refused(*place.argv(folder, text=',text'))
  words = place.argv(folder, '--config.train.duration=3 steps', valid=valid, text=',text')
  assert '20 examples' in done(*words)
  params = ocp.PyTreeCheckpointer().restore(folder / 'checkpoints' / '3' / 'params')
  assert params.keys() >= {'encoders_image', 'encoders_text'}
  error = refused('predict', folder, '--input', place.folder / '0.png')
  assert 'this model reads image, text: give a manifest' in error
  short = {'id': 'a', 'image': '0.png', 'text': 'red'}
  manifest = write_jsonl(place.folder / 'short.jsonl', [short])
  assert done('predict', folder, '--input', manifest).startswith('a\t')
  long = {'id': 'b', 'image': '0.png', 'text': LONG}
  manifest = write_jsonl(place.folder / 'long.jsonl', [short, long])
  error = refused('predict', folder, '--input', manifest)
  assert "long.jsonl: 'b' has 13 tokens, the model reads 8 at most" in error


# Killed, damaged, full


def arrays(folder: pathlib.Path, step: int) -> list:
  """Returns all arrays of a checkpoint with their paths."""
  reader = ocp.PyTreeCheckpointer()
  items = {}
  for item in ('params', 'ema', 'rest'):
    items[item] = reader.restore(folder / 'checkpoints' / str(step) / item)
  return jax.tree_util.tree_leaves_with_path(items)


def assert_same_run(left: pathlib.Path, right: pathlib.Path) -> None:
  assert metrics(left) == metrics(right)
  for (path, a), (other_path, b) in zip(arrays(left, 30), arrays(right, 30), strict=True):
    assert path == other_path
    np.testing.assert_array_equal(a, b)


def last_step(folder: pathlib.Path) -> int:
  """Returns the last step that has a checkpoint, or 0."""
  names = [path.name for path in (folder / 'checkpoints').iterdir()]
  return max((int(name) for name in names if name.isdigit()), default=0)


def interrupt(argv: tuple, folder: pathlib.Path, how: signal.Signals, steps: int):
  """Starts the program, and sends its processes a signal soon after so many steps.

  Returns:
    Its exit code and what it printed.
  """
  process = subprocess.Popen(
    [sys.executable, '-m', 'mmlm', *map(str, argv)],
    env=os.environ | {'PYTHONPATH': str(ROOT)},
    text=True,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    start_new_session=True,
  )
  log = folder / 'metrics.jsonl'
  while process.poll() is None and logged_step(log) < steps:
    time.sleep(0.002)
  time.sleep(random.uniform(0, 0.05))
  os.killpg(process.pid, how)
  output, _ = process.communicate()
  return process.returncode, output


def logged_step(log: pathlib.Path) -> int:
  """Returns the step of the last complete line of a log."""
  if not log.exists():
    return 0
  complete = log.read_text().rpartition('\n')[0]
  if not complete:
    return 0
  return json.loads(complete.splitlines()[-1])['step']


def test_a_run_that_was_killed_ends_as_if_it_was_not(place, run, tmp_path):
  """By Ctrl-C, with a loader process; then by SIGKILL; the rest in this process."""
  folder = tmp_path / 'run'
  argv = place.argv(folder)
  loader = '--config.data.workers=1'
  steps = random.randint(1, 5)
  code, output = interrupt((*argv, loader), folder, signal.SIGINT, steps)
  assert code == 130, output
  assert 'Interrupted' in output
  assert 'The same command resumes' in output
  assert 'RuntimeError' not in output
  saved = last_step(folder)
  assert saved < 30
  assert f'saved at step {saved}.' in output or 'from the last checkpoint' in output
  steps = saved + random.randint(1, 8)
  code, output = interrupt(argv, folder, signal.SIGKILL, steps)
  assert code == -signal.SIGKILL, output
  assert not saved or f'Resumed at step {saved} of 30' in output
  saved = last_step(folder)
  assert saved < 30
  assert ('Resumed at step' in done(*argv)) == (saved > 0)
  assert_same_run(folder, run)
  done('evaluate', folder)
  assert tree(folder / 'predictions') == tree(run / 'predictions')


def no_space(*args, **kwargs):
  raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_truncated_checkpoint_and_then_a_full_disk(place, run, copy, monkeypatch):
  for file in (copy / 'checkpoints' / '30').rglob('d/*'):
    os.truncate(file, file.stat().st_size // 2)
  error = refused('evaluate', copy, '--config.evaluate.checkpoint=latest')
  assert 'checkpoints/30 cannot be read' in error
  assert 'Steps that can: [24, 27]' in error
  with monkeypatch.context() as patch:
    patch.setattr(ocp.CheckpointManager, 'save', no_space)
    code, out, err = cli(*place.argv(copy))
  assert code == 2
  assert 'no space left on the disk' in err
  assert 'older ones are whole' in err
  assert 'Checkpoint 30 cannot be read' in out
  assert 'Resumed at step 27 of 30' in out
  assert {path.name for path in (copy / 'checkpoints').iterdir()} == {'24', '27', 'damaged-30'}
  done(*place.argv(copy))
  assert_same_run(copy, run)


def test_a_run_whose_checkpoints_are_all_damaged_is_not_changed(place, copy):
  for file in (copy / 'checkpoints').rglob('d/*'):
    file.write_bytes(b'')
  before = without_environment(copy)
  error = refused(*place.argv(copy))
  assert 'no checkpoint can be read' in error
  for step in (24, 27, 30):
    assert f'  {step}: ' in error
  assert without_environment(copy) == before
  assert 'Steps that can: none' in refused('evaluate', copy)


def test_a_disk_that_is_full_while_a_file_is_written_changes_nothing(run, monkeypatch):
  before = tree(run)
  with monkeypatch.context() as patch:
    patch.setattr(os, 'fsync', no_space)
    assert 'no space left on the disk' in refused('report', run)
  assert tree(run) == before


def test_a_folder_that_may_not_be_written_is_named(place, tmp_path, monkeypatch):
  def denied(self, *args, **kwargs):
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

  with monkeypatch.context() as patch:
    patch.setattr(pathlib.Path, 'mkdir', denied)
    assert 'Permission denied' in refused(*place.argv(tmp_path / 'run'))
