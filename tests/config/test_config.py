"""The schema of configs: what is read, filled in, overridden, and refused with a hint."""

import dataclasses
import pathlib
import sys

import pytest
from conftest import ROOT
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

import mmlm.word_vectors  # noqa: F401 registers its task
from mmlm import config as configs
from mmlm.decoding.score_fusion import FusionOptions
from mmlm.decoding.search_options import SearchOptions
from mmlm.experiment.experiment import Experiment
from mmlm.training.optimizers import make_schedule
from mmlm.utils.errors import UserError

FILES = sorted(ROOT.glob('configs/*/*.py'))
GENERATED = ('numerals/tiny', 'unicode_pictures/tiny', 'keypad_tones/tiny', 'three_modalities/tiny')


def small():
  """Returns the default config with an encoder."""
  config = configs.default_config()
  config.model.encoders = {'image': {'name': 'vit', 'patch': 4}}
  return config


def overridden(key, text):
  """Returns the value of a key after an override."""
  return flatten_dict(configs.override(small(), {key: text}).to_dict(), sep='.')[key]


def write(folder, *lines):
  """Writes a Python file and returns its path."""
  path = folder / 'mine.py'
  path.write_text('\n'.join(['from mmlm.config import default_config, parse_arg', *lines]))
  return str(path)


def in_file(folder, *lines):
  """Writes a config file whose function has these lines and returns its path."""
  return write(
    folder,
    'def get_config(arg=""):',
    '  config = default_config()',
    *(f'  {line}' for line in lines),
    '  return config',
  )


# Files


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
@pytest.mark.parametrize('arg', ['', 'smoke'])
def test_every_config_file_completes_and_is_the_same_when_read_back(path, arg):
  config = configs.complete(configs.load_config(f'{path}:{arg}'))
  assert config.is_locked and config.name == f'{path}:{arg}'
  first_line = config.card.splitlines()[0]
  assert first_line and first_line == first_line.strip()
  stored = configs.from_dict(config.to_dict())
  assert configs.override(stored, {}).to_dict() == config.to_dict()


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_small_forms_take_six_steps_on_generated_data(path):
  config = configs.complete(configs.load_config(f'{path}:smoke'))
  assert config.train.duration == '6 steps'
  if config.task == 'word_vectors':  # the words of the file itself
    assert config.data.name == 'text'
  else:
    assert config.data.name in GENERATED


def test_there_are_config_files():
  assert len(FILES) >= 4


def test_config_files_import_each_other_where_the_project_is_not_on_the_path(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  elsewhere = [path for path in sys.path if pathlib.Path(path).resolve() != ROOT]
  monkeypatch.setattr(sys, 'path', elsewhere)
  for name in [name for name in sys.modules if name.partition('.')[0] == 'configs']:
    monkeypatch.delitem(sys.modules, name)
  spec = in_file(tmp_path, 'from configs.captioning.flickr8k import recipe', 'recipe(config)')
  assert configs.load_config(spec).model.head['heads'] == 8


def test_a_relative_path_may_start_at_the_root_of_the_project(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert configs.load_config('configs/captioning/unicode_pictures.py:smoke').model.dim == 32


def test_an_unknown_file_names_the_nearest(tmp_path, monkeypatch):
  for folder in (ROOT, tmp_path):
    monkeypatch.chdir(folder)
    with pytest.raises(
      UserError, match=r"no config file '.*flickr9k.py'. Nearest: 'configs/captioning/flickr8k.py'"
    ):
      configs.load_config('configs/captioning/flickr9k.py:smoke')
  with pytest.raises(UserError, match='no config file'):
    configs.load_config(str(ROOT / 'README.md'))
  with pytest.raises(UserError, match='no config file'):
    configs.load_config(str(tmp_path))


@pytest.mark.parametrize(
  'line, says',
  [
    ('config.data.nmae = "x"', 'name'),
    ('config.train.batch_size = "many"', 'batch_size'),
    ('config.train.batch_size = 1.5', 'batch_size'),
    ('undefined', "NameError: name 'undefined'"),
    ('1 / 0', 'ZeroDivisionError'),
    ('import nowhere', 'nowhere'),
    ('raise OSError("no such disk")', 'no such disk'),
    ('parse_arg("sise=3", size=2)', "unknown argument 'sise' after the colon. Nearest: 'size'"),
  ],
)
def test_an_error_in_a_file_names_its_line(tmp_path, monkeypatch, line, says):
  path = in_file(tmp_path, 'pass', line)
  for spec in (path, pathlib.Path(path).name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
      configs.load_config(spec)
    assert str(caught.value).startswith(f'{spec}, line 5: ') and says in str(caught.value)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
  'spec, says',
  [
    ('brown.py:model=gru', "model: no 'gru'"),
    ('text.py:model=gru', "model: no 'gru'"),
    ('tiny_shakespeare.py:size=tpu', "size: no 'tpu'"),
  ],
)
def test_an_argument_with_an_unknown_choice_names_the_nearest(spec, says):
  with pytest.raises(UserError, match=f'{says}. Nearest: .* of '):
    configs.load_config(f'configs/language_model/{spec}')


def test_a_file_without_a_config_is_refused(tmp_path):
  with pytest.raises(UserError, match='mine.py, line 2: SyntaxError'):
    configs.load_config(write(tmp_path, 'def get_config(:'))
  with pytest.raises(UserError, match='mine.py: .*get_config'):
    configs.load_config(write(tmp_path, 'x = 1'))
  with pytest.raises(
    UserError, match='mine.py: TypeError: get_config returns None, not the config'
  ):
    configs.load_config(write(tmp_path, 'def get_config(arg=""):', '  default_config()'))


def test_arguments_after_the_colon_have_the_types_of_their_defaults():
  spec = dict(smoke=False, language='en', size=3, rate=0.5)
  assert configs.parse_arg('', **spec).to_dict() == spec
  assert configs.parse_arg('smoke,language=zh,size=4,rate=1', **spec).to_dict() == {
    'smoke': True,
    'language': 'zh',
    'size': 4,
    'rate': 1.0,
  }
  assert configs.parse_arg('smoke=false,language=a=b', **spec).to_dict() == spec | {
    'language': 'a=b'
  }
  for arg, says in (
    ('sizes=3', "'sizes'.*'size'"),
    ('size=x', "size='x': expected int"),
    ('size', 'expected int'),
  ):
    with pytest.raises(UserError, match=says):
      configs.parse_arg(arg, **spec)


# Schema


def test_complete_adds_the_options_of_parts_and_does_not_change_its_argument():
  config = small()
  done = configs.complete(config)
  assert done.model.encoders.image.to_dict() == {
    'name': 'vit',
    'layers': 6,
    'heads': 4,
    'patch': 4,
    'stem': (),
    'ffn_dim': 0,
    'positions': 'learned',
    'scan': False,
    'remat': False,
    'attention_dropout': 0.0,
    'hidden_dropout': True,
  }
  assert done.model.head.layers == 3 and 'layers' not in config.model.head
  assert configs.complete(done).to_dict() == done.to_dict()


def test_a_group_that_a_file_replaces_keeps_the_other_defaults():
  config = small()
  config.tokenizer = {'kind': 'word'}
  assert configs.complete(config).tokenizer.to_dict() == {
    'kind': 'word',
    'source': '',
    'vocab_size': 4000,
    'lowercase': True,
    'min_frequency': 2,
    'exact': False,
    'mask': False,
  }


def replaced(**groups):
  """Returns a config with unchecked values, such as model__dim=3."""
  config = small().unlock()
  for key, value in groups.items():
    *parents, leaf = key.split('__')
    node = config
    for parent in parents:
      node = node[parent]
    with node.ignore_type():
      node[leaf] = ConfigDict(value) if isinstance(value, dict) else value
  return config


@pytest.mark.parametrize(
  'changes, says',
  [
    (dict(tokenizer={'knid': 'word'}), 'tokenizer.knid: unknown key. Nearest: tokenizer.kind'),
    (dict(tokenizer={'kind': 3}), 'tokenizer.kind=3: expected str'),
    (dict(tokenizer='word'), "tokenizer='word': expected a group"),
    (dict(optimiser={'name': 'lion'}), 'optimiser: unknown key. Nearest: optimizer'),
    (dict(train={'batchsize': 3}), 'train.batchsize: unknown key. Nearest: train.batch_size'),
    (dict(model__encoders={'image': 'vit'}), "model.encoders.image='vit': expected"),
    (dict(model__encoders={'image': {'layers': 1}}), 'model.encoders.image.name: no None'),
    (
      dict(model__encoders={'image': {'name': 'vt'}}),
      "model.encoders.image.name: no 'vt'. Nearest: 'vit'",
    ),
    (
      dict(model__encoders={'image': {'name': 'vit', 'head': 1}}),
      'model.encoders.image.head: unknown key. Nearest: model.encoders.image.heads',
    ),
    (
      dict(model__encoders={'image': {'name': 'vit', 'frozen': True}}),
      'model.encoders.image.frozen: unknown key',
    ),
    (
      dict(model__encoders={'image': {'name': 'vit', 'dim': 8}}),
      'model.encoders.image.dim: unknown key',
    ),
    (
      dict(model__encoders={'image': {'name': 'vit', 'layers': 1.5}}),
      'model.encoders.image.layers=1.5: expected int',
    ),
    (
      dict(model__encoders={'image': {'name': 'vit', 'scan': 1}}),
      'model.encoders.image.scan=1: expected bool',
    ),
    (
      dict(model__fusion={'name': 'concat'}),
      "model.fusion.name: no 'concat'. Nearest: 'concatenation'",
    ),
    (dict(model__fusion={'name': 'concatenation', 'dims': 1}), 'model.fusion.dims: unknown key'),
    (
      dict(model__head={'name': 'transformer'}),
      "model.head.name: no 'transformer'. Nearest: 'transformer_decoder'",
    ),
    (
      dict(model__head={'name': 'transformer_decoder', 'layer': 1}),
      'model.head.layer: unknown key. Nearest: model.head.layers',
    ),
    (dict(model__dtype='bfloat61'), "model.dtype: no 'bfloat61'. Nearest: 'bfloat16'"),
    (dict(model__dropout=1.0), 'model.dropout=1.0: expected 0 or more, and less than 1'),
    (
      dict(model__head={'name': 'transformer_decoder', 'attention_dropout': 1.0}),
      'model.head.attention_dropout=1.0: expected 0 or more, and less than 1',
    ),
    (dict(train__duration='10'), "train.duration='10': expected a duration"),
    (dict(optimizer__warmup='2 weeks'), "optimizer.warmup='2 weeks': expected a duration"),
    (dict(train__log_every='-1 steps'), 'train.log_every'),
    (dict(train__batch_size=0), 'train.batch_size=0: expected 1 or more'),
    (dict(train__accumulate=0), 'train.accumulate=0: expected 1 or more'),
    (dict(train__keep_latest=0), 'train.keep_latest=0: expected 1 or more'),
    (dict(data__splits={'train': 'train', 'valid': 'dev'}), 'data.splits='),
    (dict(data__splits={'train': ('a', 'b'), 'valid': 'dev', 'test': 'test'}), 'data.splits='),
  ],
)
def test_a_wrong_config_is_refused_with_the_key_and_the_nearest_right_one(changes, says):
  with pytest.raises(UserError) as caught:
    configs.complete(replaced(**changes))
  assert says in str(caught.value)


def test_a_task_that_reads_something_needs_encoders(tmp_path):
  config = configs.complete(configs.default_config())
  with pytest.raises(UserError, match='model.encoders is empty'):
    Experiment(config, tmp_path)


# Overrides


@pytest.mark.parametrize(
  'key, text, value',
  [
    ('train.batch_size', '8', 8),
    ('optimizer.learning_rate', '1', 1.0),
    ('optimizer.learning_rate', '3e-4', 3e-4),
    ('tokenizer.lowercase', 'false', False),
    ('tokenizer.lowercase', 'True', True),
    ('train.duration', '3 epochs', '3 epochs'),
    ('data.source', 'a=b', 'a=b'),
    ('data.buckets', '(8, 40)', (8, 40)),
    ('data.buckets', '8,40', (8, 40)),
    ('evaluate.metrics', 'bleu,chrf', ('bleu', 'chrf')),
    ('evaluate.metrics', 'bleu', ('bleu',)),
    ('data.eval_ops', 'decode,resize(64, 32)', ('decode', 'resize(64, 32)')),
    ('data.buckets', '[8, 40]', (8, 40)),
    ('data.buckets', '40', (40,)),
    ('data.buckets', '()', ()),
    ('data.train_ops', '("decode", "resize(8)")', ('decode', 'resize(8)')),
    ('data.eval_ops', 'decode("L")', ('decode("L")',)),
    ('data.splits.test', 'test', ('test',)),
    ('optimizer.rate_rules', '((".*bias", 0.0), (".*", 1.0))', (('.*bias', 0.0), ('.*', 1.0))),
    ('model.encoders.image.stem', '(32, 64)', (32, 64)),
    ('model.encoders.image.ffn_dim', '8', 8),
    ('model.head.kv_heads', '2', 2),
  ],
)
def test_an_override_has_the_type_of_the_key(key, text, value):
  found = overridden(key, text)
  assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
  'key, text, says',
  [
    ('batch_size', '8', '--config.batch_size: unknown key. Nearest: --config.train.batch_size'),
    ('trian.batch_size', '8', 'Nearest: --config.train.batch_size'),
    ('train.btach_size', '8', 'Nearest: --config.train.batch_size'),
    ('train.batch_size.x', '8', 'unknown key'),
    ('model.encoders.image.head', '8', 'Nearest: --config.model.encoders.image.heads'),
    ('model.encoders.image.frozen', 'True', 'unknown key'),
    ('train', '8', '--config.train is a group with the keys'),
    ('train.batch_size', 'eight', "--config.train.batch_size='eight': expected int"),
    ('train.batch_size', '1.0', 'expected int'),
    ('train.batch_size', 'True', 'expected int'),
    ('optimizer.learning_rate', 'fast', 'expected float'),
    ('optimizer.learning_rate', 'True', 'expected float'),
    ('tokenizer.lowercase', '0', 'expected bool'),
    ('train.duration', 'ten', 'expected a duration'),
    ('model.encoders.image.name', 'vitt', "Nearest: 'vit'"),
  ],
)
def test_a_wrong_override_is_refused_with_the_nearest_right_key(key, text, says):
  with pytest.raises(UserError) as caught:
    overridden(key, text)
  assert says in str(caught.value)


def test_another_part_brings_its_own_options():
  """Options of both parts keep their values, others are dropped, in any order of overrides."""
  for order in (1, -1):
    settings = {
      'model.encoders.image.frozen': 'False',
      'model.encoders.image.name': 'efficientnet_lite0',
    }
    config = small()
    config.model.encoders.image.unlock()['layers'] = 2
    done = configs.override(config, dict(list(settings.items())[::order]))
    image = done.model.encoders.image
    assert (image.name, image.frozen, image.layers, image.cache) == (
      'efficientnet_lite0',
      False,
      2,
      True,
    )
    assert 'patch' not in image


# Durations


@pytest.mark.parametrize(
  'text, steps',
  [
    ('7 steps', 7),
    ('1 step', 1),
    ('2 epochs', 50),
    ('0.5 epochs', 13),
    ('64 examples', 1),
    ('65 examples', 2),
    ('0 steps', 0),
    ('5 %', 10),
    ('7%', 14),
    ('0.3 %', 1),
    ('100 %', 200),
    ('0 %', 0),
  ],
)
def test_a_duration_is_rounded_up_to_steps(text, steps):
  assert configs.to_steps(text, 'key', 64, 25, total_steps=200) == steps


@pytest.mark.parametrize(
  'text', ['', '7', 'steps', '7 minutes', '-7 steps', '7 steps 8', '1e3 steps', '∞ steps', '-5 %']
)
def test_other_texts_are_no_durations(text):
  with pytest.raises(UserError, match=f"key='{text}': expected a duration such as .*'5 %'"):
    configs.to_steps(text, 'key', 64, 25, 200)


@pytest.mark.parametrize('key', ['optimizer.warmup', 'train.log_every', 'train.eval_every'])
def test_a_duration_may_be_a_share_of_the_run(key):
  assert overridden(key, '5 %') == '5 %'
  with pytest.raises(UserError, match=f"{key}='101 %': a share of the run is at most '100 %'"):
    overridden(key, '101 %')


def test_the_length_of_the_run_is_no_share_of_itself():
  message = "train.duration='50 %': the length of the run cannot be a share of itself"
  with pytest.raises(UserError, match=message):
    overridden('train.duration', '50 %')
  with pytest.raises(UserError, match=message):
    configs.to_steps('50 %', 'train.duration', 64, 25)


def test_a_warmup_of_a_tenth_reaches_the_peak_after_a_tenth_of_the_run():
  options = configs.default_config().optimizer
  options.warmup = '10 %'
  rate = make_schedule(options, 200, batch_size=64, steps_per_epoch=25)
  assert rate(19) < options.learning_rate == rate(20)


# Properties of keys


def test_decoding_has_the_fields_of_its_dataclasses_with_their_defaults():
  fields = [*dataclasses.fields(SearchOptions), *dataclasses.fields(FusionOptions)]
  declared = {}
  for field in fields:
    is_token = '_id' in field.name  # the tokenizer gives these
    if not is_token:
      declared[field.name] = field.default
  declared['max_length'] = 0  # data.max_length
  assert configs.default_config().decoding.to_dict() == declared


def test_keys_that_may_change_when_a_run_is_continued_are_left_out():
  fixed = configs.without_resumable(configs.complete(small()).to_dict())
  for key in ('name', 'card', 'parallel', 'evaluate', 'watch'):
    assert key not in fixed
  assert 'dir' not in fixed['data'] and 'max_length' in fixed['data']
  assert 'log_every' not in fixed['train'] and 'eval_every' in fixed['train']
  assert fixed['model'] == configs.complete(small()).model.to_dict()


def test_options_of_parts_tell_their_limits_and_properties():
  options = configs.options_in(configs.complete(small()))
  assert options['model.encoders.image.attention_dropout'].traced
  assert options['model.dropout'].traced and not options['model.dim'].traced
  assert options['train.duration'].schedule and options['train.log_every'].outside_program
  assert 'model.encoders.image.dim' not in options and 'data.splits.train' not in options
