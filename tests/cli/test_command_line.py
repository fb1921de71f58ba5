"""Words on the command line: commands, flags, help, settings, data; errors before training."""

import importlib
import json
import re
import subprocess
import sys

import pytest
from conftest import ROOT
from program import LONG, Place, cli, done, refused, rows, write_jsonl

from mmlm.cli import flags
from mmlm.cli.command_line import parse


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  return Place(tmp_path_factory.mktemp('place'))


# Help


@pytest.mark.parametrize('name', flags.COMMANDS)
def test_help_of_a_command_is_its_sentence_and_its_own_flags(name):
  text = done(name, '--help') if name != 'quick_start' else flags.command_help(name)
  usage, sentence = text.split('\n\n')[:2]
  assert usage.startswith(f'./launch.sh {name}')
  assert sentence.endswith(('.', ').'))
  module = importlib.import_module(f'mmlm.cli.{name}')
  assert module.__doc__.startswith(sentence)
  assert callable(getattr(module, name))
  expected = flags.flags_of(flags.COMMANDS[name])
  shown = re.findall(r'^  --(?:\[no\])?([a-z_]+)(?:=|\s|$)', text, re.MULTILINE)
  assert shown == [field.name for field in expected]
  assert all(field.metadata['help'] for field in expected)


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


# Words


@pytest.mark.parametrize(
  'argv, message',
  [
    (['trian', 'x'], "no command 'trian'. Nearest: 'train'"),
    (['train', 'x.py'], '--workdir'),
    (['train', '--workdir=x'], 'train takes CONFIG, not []'),
    (['evaluate', 'a', 'b'], "evaluate takes RUN, not ['a', 'b']"),
    (['predict', 'a'], '--input'),
    (['train', 'x.py', '--workdir=x', '--skip_brokn'], 'Did you mean: skip_broken'),
    (['evaluate', 'x', '--workdir=y'], "Unknown command line flag 'workdir'"),
    (['evaluate', 'x', '--greedy=maybe'], 'greedy'),
    (['train', 'x.py', '--workdir=x', '--config.seed'], 'write it as --config.KEY=VALUE'),
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
def test_wrong_words_are_named_and_nothing_is_written(argv, message, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert message in refused(*argv)
  assert {path.name for path in tmp_path.iterdir()} <= {'data'}


def test_the_config_may_be_a_flag_or_an_argument():
  words = ['mmlm', 'train', '--workdir=x', '--config.seed=1']
  by_argument = parse([*words, 'a.py:smoke'])
  expected = flags.Train(config='a.py:smoke', workdir='x', settings={'seed': '1'})
  assert by_argument == ('train', expected)
  assert parse([*words, '--config=a.py:smoke']) == by_argument
  assert parse([*words, '--config', 'a.py:smoke']) == by_argument


# Settings


@pytest.mark.parametrize(
  'setting, message',
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
def test_a_wrong_setting_is_named_and_claims_no_folder(
  place, tmp_path, monkeypatch, setting, message
):
  monkeypatch.delenv('MMLM_DATA', raising=False)
  assert message in refused(*place.argv(tmp_path / 'run', f'--config.{setting}'))
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
  'settings, message',
  [
    (['data.buckets=(4,)'], 'expected increasing lengths that end with data.max_length=8'),
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
def test_a_start_that_failed_on_the_data_leaves_the_folder_to_any_config(
  place, tmp_path, settings, message
):
  words = [f'--config.{setting}' for setting in settings]
  for _ in range(2):
    assert message in refused(*place.argv(tmp_path / 'run', *words))
  others = ['--config.data.buckets=(8,)', '--config.data.max_length=3']
  assert 'max_length=3' in refused(*place.argv(tmp_path / 'run', *others))


@pytest.mark.parametrize(
  'mesh, message',
  [
    ('data=3', "parallel.mesh='data=3' is for 3 devices, and there are 8"),
    ('data=2,fspd=4', "not 'fspd=4'. Nearest: 'fsdp'"),
    ('data=-1,fsdp=-1', 'of which one may be -1'),
    ('data=-1,fsdp=3', 'multiples of 3 devices, and there are 8'),
  ],
)
def test_an_impossible_mesh_is_refused(place, tmp_path, mesh, message):
  words = ['--config.parallel.strategy=mesh', f'--config.parallel.mesh={mesh}']
  assert message in refused(*place.argv(tmp_path / 'run', *words))
  assert not (tmp_path / 'run').exists()


# Data


@pytest.fixture(scope='module')
def broken(place):
  """The place, also with a picture that cannot be decoded and an empty one."""
  (place.folder / 'broken.png').write_bytes(b'\x89PNG no picture')
  (place.folder / 'zero.png').write_bytes(b'')
  return place


@pytest.mark.parametrize(
  'line, messages',
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
def test_a_bad_line_stops_before_anything_is_written(broken, tmp_path, split, line, messages):
  path = write_jsonl(broken.folder / f'bad-{split}.jsonl', [*rows(3), line])
  error = refused(*broken.argv(tmp_path / 'run', **{split: path}))
  for message in (path.name, *messages):
    assert message in error
  assert not (tmp_path / 'run').exists()


def test_prepare_finds_broken_pictures_before_training(broken):
  line = {'id': 'x', 'image': 'broken.png', 'target': 'a'}
  path = write_jsonl(broken.folder / 'bad.jsonl', [*rows(3), line])
  words = ['prepare', path, '--data_dir', broken.data]
  assert 'broken' in refused(*words)
  assert '3 of 4 examples are good' in done(*words, '--skip_broken')


def test_an_empty_manifest_is_refused(place, tmp_path):
  path = write_jsonl(place.folder / 'empty.jsonl', [])
  assert 'no example in it' in refused(*place.argv(tmp_path / 'run', train=path))
  assert not (tmp_path / 'run').exists()


def test_broken_pictures_and_long_captions_are_counted_and_left_out(broken, tmp_path):
  """Also after a start that failed in the same folder."""
  bad = [
    {'id': 'bad', 'image': 'zero.png', 'target': 'a'},
    {'id': 'long', 'image': '0.png', 'target': LONG},
  ]
  path = write_jsonl(broken.folder / 'mixed.jsonl', [*rows(20), *bad])
  words = ['--config.train.duration=2 steps', '--skip_broken']
  argv = broken.argv(tmp_path / 'run', *words, train=path)
  wrong = ['--config.optimizer.name=adam', '--config.tokenizer.kind=bpe']
  assert 'optimizer.name' in refused(*argv, *wrong)
  code, out, err = cli(*argv)
  assert code == 0
  for part in ('1 of 22 pictures are broken', 'zero.png', 'left out'):
    assert part in err
  assert f'{path}: 1 of 21 examples are longer than data.max_length=8 tokens' in out
  assert 'are left out (the longest has 13)' in out
  assert f'{path}: 20 examples, 3 steps an epoch, 2 steps in all' in out
  tokenizer = json.loads((tmp_path / 'run' / 'tokenizer.json').read_text())
  assert tokenizer['kind'] == 'word'
  assert 'many' in str(tokenizer)  # the vocabulary is that of the long caption too
