"""The program as a person meets it: what a run leaves, what bad input gets, and that nothing is ever lost."""

import errno
import importlib
import json
import os
import pathlib
import random
import re
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

from mmlm.cli import flags
from mmlm.cli.command_line import parse
from mmlm.experiment import environment


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  return Place(tmp_path_factory.mktemp('place'))


@pytest.fixture(scope='module')
def run(place):
  """A run that was trained without interruption, evaluated and reported, with what training printed."""
  folder = place.folder / 'run'
  (place.folder / 'said').write_text(done(*place.argv(folder)))
  done('evaluate', folder)
  done('report', folder)
  return folder


@pytest.fixture
def copy(run, tmp_path):
  shutil.copytree(run, tmp_path / 'copy')
  return tmp_path / 'copy'


# Words on the command line


@pytest.mark.parametrize(
  'argv, says',
  [
    (['trian', 'x'], "no command 'trian'. Nearest: 'train'"),
    (['train', 'x.py'], '--workdir'),
    (['train', '--workdir=x'], 'train takes CONFIG, not []'),
    (['evaluate', 'a', 'b'], "evaluate takes RUN, not ['a', 'b']"),
    (['predict', 'a'], '--input'),
    (
      ['train', 'x.py', '--workdir=x', '--skip_brokn'],
      "Unknown command line flag 'skip_brokn'. Did you mean: skip_broken",
    ),
    (['evaluate', 'x', '--workdir=y'], "Unknown command line flag 'workdir'"),
    (['evaluate', 'x', '--greedy=maybe'], 'greedy'),
    (
      ['train', 'x.py', '--workdir=x', '--config.seed'],
      '--config.seed: write it as --config.KEY=VALUE',
    ),
    (['train', 'a.py', '--config=b.py', '--workdir=x'], 'the config is given twice'),
    (['evaluate', 'x', '--config=b.py'], "Unknown command line flag 'config'"),
    (['to_gpt2', 'x', '--output=y'], 'export RUN --format huggingface'),
    (['vectors', 'x', '--output=y'], 'export RUN --format word2vec'),
    (['export', 'x', '--format=gguf'], "--format: no 'gguf'"),
    (['--splits=x'], "Unknown command line flag 'splits'"),
    (['prepare', 'flickr8k', '--config.seed=1'], 'prepare reads no config'),
    (['prepare', 'flickr9k'], "'flickr8k'"),
    (
      ['train', 'configs/captioning/flickr9k.py', '--workdir=x'],
      "Nearest: 'configs/captioning/flickr8k.py'",
    ),
  ],
)
def test_wrong_words(argv, says, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert says in refused(*argv)
  assert not any(p for p in tmp_path.iterdir() if p.name != 'data')


@pytest.mark.parametrize(
  'setting, says',
  [
    ('batch_size=8', 'Nearest: --config.train.batch_size'),
    ('train.batch_size=eight', 'expected int'),
    ('train.duration=ten', "expected a duration such as '500 steps'"),
    ('model.encoders.image.name=vitt', "Nearest: 'vit'"),
    ('model.encoders.image.head=2', 'Nearest: --config.model.encoders.image.heads'),
    ('task=captionin', "Nearest: 'captioning'"),
    ('parallel.strategy=tpu', "choose 'auto', 'jit' or 'pmap'"),
    ('data.name=unicode_picture', "'unicode_pictures'"),
    ('data.name=flickr8k', './launch.sh prepare flickr8k --source'),
    ('decoding.method=beem', "did you mean 'beam'"),
    ('decoding.n_best=9', 'n_best=9'),
    ('evaluate.metrics=("blue",)', "evaluate.metrics: no 'blue'. Nearest: 'bleu"),
    ('data.splits.train=nowhere.jsonl', 'A manifest looks like this'),
    ('data.splits.valid=nowhere.jsonl', 'A manifest looks like this'),
  ],
)
def test_wrong_settings(place, tmp_path, monkeypatch, setting, says):
  monkeypatch.delenv('MMLM_DATA', raising=False)
  assert says in refused(*place.argv(tmp_path / 'run', f'--config.{setting}'))
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
  'settings, says',
  [
    (
      ['data.buckets=(4,)'],
      'data.buckets=(4,): expected increasing lengths that end with data.max_length=8',
    ),
    (['data.buckets=(8,4,8)'], 'expected increasing lengths'),
    (['data.max_length=2'], 'no example is within data.max_length=2'),
    (['train.monitor=blue'], "train.monitor: no 'blue'. Nearest: 'bleu"),
    (
      ['train.monitor=word_f2', 'decoding.method=sample', 'decoding.temperature=0.5'],
      "Nearest: 'word_f1'",
    ),
    (['tokenizer.kind=bp'], "did you mean 'bpe'"),
    (['data.train_ops=("decod",)'], "'decode'"),
    (['data.eval_ops=("decode","resize(0.5)")'], 'resize(0.5)'),
  ],
)
def test_settings_that_are_found_wrong_with_the_data_claim_no_folder(
  place, tmp_path, settings, says
):
  """A start that failed leaves a folder that any other config may take."""
  for _ in range(2):
    assert says in refused(*place.argv(tmp_path / 'run', *(f'--config.{s}' for s in settings)))
  assert 'max_length=3' in refused(
    *place.argv(tmp_path / 'run', '--config.data.buckets=(8,)', '--config.data.max_length=3')
  )


@pytest.mark.parametrize(
  'settings, says',
  [
    (('mesh=data=3',), "parallel.mesh='data=3' is for 3 devices, and there are 8"),
    (('mesh=data=2,fspd=4',), "not 'fspd=4'. Nearest: 'fsdp'"),
    (('mesh=data=-1,fsdp=-1',), 'of which one may be -1'),
    (('mesh=data=-1,fsdp=3',), 'multiples of 3 devices, and there are 8'),
  ],
)
def test_meshes_that_are_none(place, tmp_path, settings, says):
  argv = [f'--config.parallel.{setting}' for setting in ('strategy=mesh', *settings)]
  assert says in refused(*place.argv(tmp_path / 'r', *argv))
  assert not (tmp_path / 'r').exists()


@pytest.mark.parametrize('name', flags.COMMANDS)
def test_help_of_a_command_is_its_sentence_and_its_own_flags(name):
  text = done(name, '--help') if name != 'quick_start' else flags.command_help(name)
  usage, sentence = text.split('\n\n')[:2]
  assert usage.startswith(f'./launch.sh {name}') and sentence.endswith(('.', ').'))
  module = importlib.import_module(f'mmlm.cli.{name}')
  assert module.__doc__.startswith(sentence) and callable(getattr(module, name))
  expected = {field.name for field in flags.flags_of(flags.COMMANDS[name])}
  shown = set(re.findall(r'^  --(?:\[no\])?([a-z_]+)(?:=|\s|$)', text, re.MULTILINE))
  assert shown == expected
  assert all(field.metadata['help'] for field in flags.flags_of(flags.COMMANDS[name]))


def test_general_help_has_a_line_for_each_command():
  text = done('--help')
  for name in flags.COMMANDS:
    assert flags.summary(name) in text
    assert name == 'quick_start' or re.search(f'^  {name} ', text, re.MULTILINE)


def test_help_does_not_import_jax():
  """Jax is slow to import, and must not be before the cache of compiled programs is set."""
  code = (
    'import sys; sys.argv = ["mmlm", "train", "--help"]; from mmlm.cli import main; '
    'main.main(); print("jax" in sys.modules)'
  )
  out = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
  assert out.stdout.endswith('\nFalse\n'), out


def test_config_may_be_a_flag_or_an_argument():
  argument = parse(['mmlm', 'train', 'a.py:smoke', '--workdir=x', '--config.seed=1'])
  assert argument == parse(
    ['mmlm', 'train', '--config=a.py:smoke', '--config.seed=1', '--workdir', 'x']
  )
  assert argument[1] == flags.Train(config='a.py:smoke', workdir='x', settings={'seed': '1'})


# Data


def broken(folder):
  (folder / 'broken.png').write_bytes(b'\x89PNG no picture')
  (folder / 'zero.png').write_bytes(b'')
  return folder


@pytest.mark.parametrize(
  'bad, says',
  [
    (
      {'id': 'x', 'image': 'nowhere.png', 'target': 'a'},
      ('line 4', 'there is no file nowhere.png'),
    ),
    ('{"id": "x", ', ('line 4', 'bad JSON')),
    ({'id': 'x', 'image': '0.png'}, ('line 4', "no 'target'")),
    (
      {'id': 'e1', 'image': '0.png', 'target': 'a'},
      ('line 4', "the id 'e1' stands already in line 2"),
    ),
    ({'id': 'x', 'target': 'a'}, ('line 4', "no 'image'")),
    (
      {'id': 'x', 'image': 'broken.png', 'target': 'a'},
      ('1 of 4 pictures are broken', 'broken.png', '--skip_broken'),
    ),
    ({'id': 'x', 'image': 'zero.png', 'target': 'a'}, ('zero.png: zero bytes', '--skip_broken')),
  ],
)
@pytest.mark.parametrize('split', ['train', 'valid'])
def test_a_bad_line_stops_before_anything_is_written(place, tmp_path, split, bad, says):
  path = write_jsonl(broken(place.folder) / f'bad-{split}.jsonl', rows(3) + [bad])
  said = refused(*place.argv(tmp_path / 'run', **{split: path}))
  assert f'bad-{split}.jsonl' in said and all(part in said for part in says)
  assert not (tmp_path / 'run').exists()
  if 'broken' in said:  # `prepare` finds it before any training
    assert 'broken' in refused('prepare', path, '--data_dir', place.data)
    assert '3 of 4 examples are good' in done(
      'prepare', path, '--data_dir', place.data, '--skip_broken'
    )


def test_an_empty_manifest(place, tmp_path):
  assert 'no example in it' in refused(
    *place.argv(tmp_path / 'run', train=write_jsonl(place.folder / 'empty.jsonl', []))
  )
  assert not (tmp_path / 'run').exists()


def test_broken_pictures_and_long_captions_are_counted_and_left_out(place, tmp_path):
  """After a start that failed in the same folder, which is no obstacle."""
  bad = [
    {'id': 'bad', 'image': 'zero.png', 'target': 'a'},
    {'id': 'long', 'image': '0.png', 'target': LONG},
  ]
  path = write_jsonl(broken(place.folder) / 'mixed.jsonl', rows(20) + bad)
  argv = place.argv(
    tmp_path / 'run', '--config.train.duration=2 steps', '--skip_broken', train=path
  )
  assert 'optimizer.name' in refused(
    *argv, '--config.optimizer.name=adam', '--config.tokenizer.kind=bpe'
  )
  code, out, err = cli(*argv)
  assert (
    code == 0 and '1 of 22 pictures are broken' in err and 'zero.png' in err and 'left out' in err
  )
  assert (
    f'{path}: 1 of 21 examples are longer than data.max_length=8 tokens and are left out (the longest has 13)'
    in out
  )
  assert f'{path}: 20 examples, 3 steps an epoch, 2 steps in all' in out
  tokenizer = json.loads((tmp_path / 'run' / 'tokenizer.json').read_text())
  assert tokenizer['kind'] == 'word' and 'many' in str(tokenizer)


# The run folder


def test_what_a_run_leaves(place, run):
  said = (place.folder / 'said').read_text()
  assert (
    'cpu' in said
    and 'Python 3.' in said
    and 'jax ' in said
    and 'step     30/30 100 %' in said
    and 'examples/s' in said
  )
  assert {'config.json', 'environment.json', 'metrics.jsonl', 'tokenizer.json', 'report.html'} <= {
    p.name for p in run.iterdir()
  }
  assert json.loads((run / 'config.json').read_text())['optimizer']['learning_rate'] == 0.01
  environment = json.loads((run / 'environment.json').read_text())
  assert (
    environment['versions'].keys() >= {'jax', 'flax', 'orbax-checkpoint'}
    and environment['devices']['platform'] == 'cpu'
  )
  logged = metrics(run)
  assert [row['step'] for row in logged if row['kind'] == 'train'] == list(range(2, 31, 2))
  assert [row['step'] for row in logged if row['kind'] == 'valid'] == list(range(3, 31, 3))
  assert logged[-2]['loss'] < 0.7 * logged[0]['loss']


def test_every_example_is_predicted_once_with_its_whole_reference(run):
  (path,) = (p for p in (run / 'predictions').iterdir() if 'shuffled' not in p.name)
  found = {row['id']: row for row in read_jsonl(path)}
  assert found.keys() == {f'e{i}' for i in range(20, 28)} | {'long'}
  assert found['long']['references'] == [LONG] and found['e20']['references'] == [
    rows(1, 20)[0]['target']
  ]
  scores = json.loads((run / 'scores' / f'{path.stem}.json').read_text())
  assert scores['n'] == 9 and scores['scores']['word_f1'].keys() == {'value', 'low', 'high'}
  assert (run / 'scores' / f'{path.stem}-shuffled.json').exists()


def test_training_a_complete_run_changes_nothing(place, copy):
  before = tree(copy)
  assert 'The run is complete.' in done(*place.argv(copy))
  after = tree(copy)
  assert after.pop('environment.json') and before.pop('environment.json') and after == before


def test_a_run_of_another_config_is_left_alone(place, run):
  before = tree(run)
  said = refused(
    *place.argv(
      run,
      '--config.optimizer.learning_rate=3e-4',
      '--config.model.dim=32',
      '--config.train.log_every=5 steps',
    )
  )
  assert 'holds a run of another config' in said
  assert (
    'optimizer.learning_rate: 0.01 -> 0.0003' in said
    and 'model.dim: 16 -> 32' in said
    and 'log_every' not in said
  )
  assert tree(run) == before


def test_a_folder_that_is_no_run(place, tmp_path):
  (tmp_path / 'letter.txt').write_text('dear')
  assert 'is not empty and holds no run' in refused(*place.argv(tmp_path))
  assert 'Not a directory' in refused(*place.argv(tmp_path / 'letter.txt'))
  for command in (['evaluate'], ['predict', '--input', place.folder / '0.png'], ['report']):
    for folder in (tmp_path, tmp_path / 'nowhere'):
      assert 'not a run folder (no config.json)' in refused(command[0], folder, *command[1:])
  assert [p.name for p in tmp_path.iterdir()] == ['letter.txt']


def test_a_run_without_a_checkpoint(place, copy):
  shutil.rmtree(copy / 'checkpoints')
  before = tree(copy)
  assert 'no checkpoint. Train first' in refused('evaluate', copy)
  assert 'no checkpoint. Train first' in refused('predict', copy, '--input', place.folder / '0.png')
  assert tree(copy) == before and not (copy / 'checkpoints').exists()


def test_a_config_of_a_run_that_was_edited_badly(copy):
  path = copy / 'config.json'
  path.write_text(path.read_text().replace('"batch_size"', '"batch_sise"', 1))
  assert 'batch_sise: unknown key. Nearest' in refused('report', copy)
  path.write_text('{"task":\n')
  assert 'config.json, line 2, column 1: not JSON' in refused('report', copy)


# Evaluation and prediction


@pytest.mark.parametrize(
  'words, says',
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
def test_evaluation_that_cannot_be(run, words, says):
  before = tree(run)
  assert says in refused('evaluate', run, *words)
  assert tree(run) == before


def test_evaluation_on_another_manifest_with_another_search(place, copy):
  write_jsonl(place.folder / 'other.jsonl', rows(3, 5))
  said = done(
    'evaluate',
    copy,
    f'--splits={place.folder / "other.jsonl"}',
    '--greedy',
    '--config.evaluate.checkpoint=latest',
    '--config.evaluate.average=3',
    '--config.evaluate.shuffled=False',
  )
  assert 'other.jsonl (greedy), 3 examples, step 30' in said and 'shuffled' not in said
  scores = json.loads((copy / 'scores' / 'other-30-greedy.json').read_text())
  assert scores['average'] == 3 and scores['decoding']['method'] == 'greedy'
  assert [row['id'] for row in read_jsonl(copy / 'predictions' / 'other-30-greedy.jsonl')] == [
    'e5',
    'e6',
    'e7',
  ]


def test_predict_a_folder_a_manifest_and_one_picture_on_many_devices(place, run, tmp_path):
  pictures = tmp_path / 'pictures' / 'deep'
  pictures.mkdir(parents=True)
  for name in ('3.png', '4.png'):
    shutil.copy(place.folder / name, pictures)
  (pictures / 'note.txt').write_text('no picture')
  out = tmp_path / 'new' / 'out.jsonl'
  said = done('predict', run, '--input', tmp_path / 'pictures', '--output', out)
  found = {row['id']: row['hypothesis'] for row in read_jsonl(out)}
  assert found.keys() == {'deep/3.png', 'deep/4.png'} and all(
    f'{k}\t{v}\n' in said for k, v in found.items()
  )
  manifest = write_jsonl(
    place.folder / 'untold.jsonl', [{'id': 'b', 'image': '4.png'}, {'id': 'a', 'image': '3.png'}]
  )
  said = done('predict', run, '--input', manifest)
  assert said == f'b\t{found["deep/4.png"]}\na\t{found["deep/3.png"]}\n'
  said = done('predict', run, '--input', place.folder / '3.png', '--config.parallel.strategy=pmap')
  assert said == f'3.png\t{found["deep/3.png"]}\n'


def test_predict_what_is_no_picture(place, run, tmp_path):
  broken(place.folder)
  assert 'no such file or folder' in refused('predict', run, '--input', tmp_path / 'nowhere.png')
  assert 'no picture' in refused('predict', run, '--input', tmp_path)
  shutil.copy(place.folder / '0.png', tmp_path)
  for name, says in (
    ('broken.png', "'broken.png': the picture can't be decoded"),
    ('zero.png', "the picture of 'zero.png' has zero bytes"),
  ):
    shutil.copy(place.folder / name, tmp_path)
    assert says in refused('predict', run, '--input', tmp_path, '--output', tmp_path / 'out.jsonl')
    assert says in refused('predict', run, '--input', tmp_path / name)
    (tmp_path / name).unlink()
  manifest = write_jsonl(
    tmp_path / 'zero.jsonl', [{'id': 'z', 'image': str(place.folder / 'zero.png')}]
  )
  assert "the picture of 'z' has zero bytes" in refused('predict', run, '--input', manifest)
  assert "can't be decoded" in refused('predict', run, '--input', place.config)
  assert not (tmp_path / 'out.jsonl').exists()


def test_a_second_modality_is_one_line_of_config(place, tmp_path):
  folder = tmp_path / 'run'
  place_valid = write_jsonl(place.folder / 'both.jsonl', rows(8, 20))
  argv = place.argv(folder, '--config.train.duration=3 steps', valid=place_valid, text=',text')
  assert "line 9: no 'text'" in refused(*place.argv(folder, text=',text'))
  assert '20 examples' in done(*argv)
  state = ocp.PyTreeCheckpointer().restore(folder / 'checkpoints' / '3' / 'params')
  assert {'encoders_image', 'encoders_text'} <= state.keys()
  assert 'this model reads image, text: give a manifest' in refused(
    'predict', folder, '--input', place.folder / '0.png'
  )
  told = [{'id': 'a', 'image': '0.png', 'text': 'red'}, {'id': 'b', 'image': '0.png', 'text': LONG}]
  told = [write_jsonl(place.folder / f'told{n}.jsonl', told[:n]) for n in (1, 2)]
  assert done('predict', folder, '--input', told[0]).startswith('a\t')
  assert "told2.jsonl: 'b' has 13 tokens, the model reads 8 at most" in refused(
    'predict', folder, '--input', told[1]
  )


# Killed, damaged, full


def arrays(folder, step):
  """All arrays of a checkpoint by name."""
  items = {}
  for item in ('params', 'ema', 'rest'):
    items[item] = ocp.PyTreeCheckpointer().restore(folder / 'checkpoints' / str(step) / item)
  return jax.tree_util.tree_leaves_with_path(items)


def same_run(left, right):
  pairs = zip(arrays(left, 30), arrays(right, 30), strict=True)
  return metrics(left) == metrics(right) and all(
    a[0] == b[0] and np.array_equal(a[1], b[1]) for a, b in pairs
  )


def stop(argv, folder, how, steps):
  """Starts the program, sends its processes a signal at a random moment once it has made so many steps.

  Returns its exit code and what it printed.
  """
  environment = os.environ | {'PYTHONPATH': str(ROOT)}
  process = subprocess.Popen(
    [sys.executable, '-m', 'mmlm', *map(str, argv)],
    env=environment,
    text=True,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    start_new_session=True,
  )
  log = folder / 'metrics.jsonl'
  while process.poll() is None and not (
    log.exists() and any(row['step'] >= steps for row in whole_lines(log))
  ):
    time.sleep(0.002)
  time.sleep(random.uniform(0, 0.05))
  os.killpg(process.pid, how)
  said, _ = process.communicate()
  return process.returncode, said


def whole_lines(path):
  result = []
  for line in path.read_text().splitlines(keepends=True):
    if line.endswith('\n'):
      result.append(json.loads(line))
  return result


def test_killed_at_any_moment_a_run_ends_as_if_it_was_not(place, run, tmp_path):
  """By Ctrl-C, with a loader process; then by SIGKILL; the rest in this process."""
  folder = tmp_path / 'run'
  code, said = stop(
    place.argv(folder, '--config.data.workers=1'), folder, signal.SIGINT, random.randint(1, 5)
  )
  assert (
    code == 130
    and 'Interrupted' in said
    and 'The same command goes on' in said
    and 'RuntimeError' not in said
  ), (code, said)
  saved = max(
    (int(p.name) for p in (folder / 'checkpoints').iterdir() if p.name.isdigit()), default=0
  )
  assert (
    saved < 30
    and f'saved at step {saved}.' in said
    or 'from the last checkpoint' in said
    and saved % 3 == 0
  )
  code, said = stop(place.argv(folder), folder, signal.SIGKILL, saved + random.randint(1, 8))
  assert code == -signal.SIGKILL and (not saved or f'Resumed at step {saved} of 30' in said), (
    code,
    said,
  )
  assert not (folder / 'checkpoints' / '30').exists()
  saved = max(
    (int(p.name) for p in (folder / 'checkpoints').iterdir() if p.name.isdigit()), default=0
  )
  assert ('Resumed at step' in done(*place.argv(folder))) == (saved > 0)
  assert same_run(folder, run), said
  done('evaluate', folder)
  names = sorted(p.name for p in (run / 'predictions').iterdir())
  assert names == sorted(p.name for p in (folder / 'predictions').iterdir())
  assert all(
    (folder / 'predictions' / n).read_bytes() == (run / 'predictions' / n).read_bytes()
    for n in names
  )


def test_a_truncated_checkpoint_and_then_a_full_disk(place, run, copy, monkeypatch):
  def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  for file in (copy / 'checkpoints' / '30').rglob('d/*'):
    os.truncate(file, file.stat().st_size // 2)
  said = refused('evaluate', copy, '--config.evaluate.checkpoint=latest')
  assert 'checkpoints/30 cannot be read' in said and 'Steps that can: [24, 27]' in said
  with monkeypatch.context() as patch:
    patch.setattr(ocp.CheckpointManager, 'save', full)
    code, out, err = cli(*place.argv(copy))
  assert code == 2 and 'no space left on the disk' in err and 'older ones are whole' in err
  assert 'Checkpoint 30 cannot be read' in out and 'Resumed at step 27 of 30' in out
  assert {p.name for p in (copy / 'checkpoints').iterdir()} == {'24', '27', 'damaged-30'}
  done(*place.argv(copy))
  assert same_run(copy, run)


def test_all_checkpoints_damaged(place, copy):
  for file in (copy / 'checkpoints').rglob('d/*'):
    file.write_bytes(b'')
  before = tree(copy)
  said = refused(*place.argv(copy))
  assert 'no checkpoint can be read' in said and all(f'  {step}: ' in said for step in (24, 27, 30))
  after = tree(copy)
  assert after.pop('environment.json') and before.pop('environment.json') and after == before
  assert 'Steps that can: none' in refused('evaluate', copy)


def test_a_full_disk_while_a_file_is_written(run, monkeypatch):
  def full(*args):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  before = tree(run)
  with monkeypatch.context() as patch:
    patch.setattr(os, 'fsync', full)
    assert 'no space left on the disk' in refused('report', run)
  assert tree(run) == before


def test_a_folder_that_may_not_be_written(place, tmp_path, monkeypatch):
  def denied(self, *args, **kwargs):
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

  with monkeypatch.context() as patch:
    patch.setattr(pathlib.Path, 'mkdir', denied)
    assert 'Permission denied' in refused(*place.argv(tmp_path / 'run'))


def test_a_machine_without_git(place, run, tmp_path, monkeypatch):
  monkeypatch.setenv('PATH', str(tmp_path))
  assert environment.environment()['commit'] is None


def test_results_that_were_written_do_not_change_the_commit(tmp_path):
  def git(*words):
    return subprocess.run(
      ['git', '-C', str(tmp_path), '-c', 'user.name=a', '-c', 'user.email=a@b', *words],
      check=True,
      capture_output=True,
    )

  git('init')
  for name in ('README.md', 'code.py', 'experiments/README.md', 'experiments/results/mr.json'):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text('1')
  git('add', '.')
  git('commit', '-m', 'one')
  (tmp_path / 'experiments' / 'results' / 'mr.json').write_text('2')
  commit = environment.commit_of(tmp_path)
  assert re.fullmatch('[0-9a-f]{7,}', commit)
  (tmp_path / 'code.py').write_text('2')
  assert environment.commit_of(tmp_path) == f'{commit}-dirty'
