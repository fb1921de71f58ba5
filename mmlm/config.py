"""The schema of an experiment's config with its defaults, and how a config is read, completed and checked.

A config file holds one function, `get_config(arg='')`, that starts from `default_config()` and sets what differs. What
may be set is what stands here, and for the parts chosen by name (encoders, fusion, head) the fields of their modules.
"""

import ast
import dataclasses
import functools
import importlib.util
import inspect
import math
import pathlib
import re
import traceback

from ml_collections import ConfigDict

from mmlm.errors import UserError
from mmlm.trees import nearest

ROOT = pathlib.Path(__file__).resolve().parent.parent

# The keys that may change when a run goes on: they decide how it is run, never what it computes.
NOT_PART_OF_THE_RUN = ('name', 'card', 'data.dir', 'data.source', 'data.workers', 'data.skip_broken', 'train.log_every', 'parallel', 'evaluate')


def default_config() -> ConfigDict:
  """Every key with its default. Durations are texts such as '500 steps', '10 epochs' or '90000 examples'."""
  return ConfigDict({
    'name': '',                   # the file the config was read from, and its argument
    'card': '',                   # that file's docstring
    'task': 'captioning',         # a name in mmlm.tasks.TASKS
    'seed': 0,                    # initial parameters, order of the data, dropout
    'data': {
      'name': 'unicode_pictures',  # a set of ours, 'manifest', or any TFDS folder under data.dir, e.g. 'coco_captions/2014'
      'dir': 'data',              # where prepared data sets and cached features live
      'source': '',               # the original files; '' = $MMLM_DATA/<name>
      'fields': {},             # {our field: the set's feature}; empty = the builder's own
      'splits': {'train': 'train', 'valid': 'valid', 'test': ('test',)},  # manifests: paths of JSON lines
      'train_ops': ('decode', 'resize(224)', 'flip', 'normalize'),
      'eval_ops': ('decode', 'resize(224)', 'normalize'),
      'max_length': 40,           # tokens of a target (end token included) or text; longer examples leave training, counted
      'buckets': (),              # lengths of padded targets; () = one bucket of max_length
      'workers': 0,               # loader processes; 0 = threads in this one
      'skip_broken': False,       # leave out pictures that cannot be read, and count them
      'max_valid_examples': 0,    # validate on so many examples during training; 0 = all
    },
    'tokenizer': {'kind': 'bpe', 'vocab_size': 4000, 'lowercase': True, 'min_frequency': 2},
    'model': {
      'dim': 256,                 # width of every sequence that leaves an encoder
      'dropout': 0.1,
      'dtype': 'float32',         # of the computation; parameters and optimizer state are float32
      'encoders': {},             # {modality: {'name': ..., the fields of that encoder}}
      'fusion': {'name': 'concatenation'},
      'head': {'name': 'transformer_decoder'},
    },
    'optimizer': {
      'name': 'adamw',            # adamw, adafactor, lion
      'learning_rate': 1e-3,
      'schedule': 'cosine',       # cosine, linear, inverse_sqrt, constant
      'warmup': '200 steps',
      'final_fraction': 0.0,      # of the learning rate, at the end of cosine and linear
      'beta1': 0.9, 'beta2': 0.98, 'epsilon': 1e-9,
      'weight_decay': 0.01,
      'clip_norm': 1.0,           # global norm of the gradient; 0 = no clipping
      'decay_rules': (('.*/(bias|scale|positions)', 0.0), ('.*', 1.0)),  # (regex, multiplier of weight_decay)
      'rate_rules': (('.*', 1.0),),  # (regex, multiplier of learning_rate); 0 freezes
    },
    'train': {
      'duration': '10 epochs',
      'batch_size': 64,           # over all devices, accumulation included
      'accumulate': 1,            # micro-batches in one step
      'label_smoothing': 0.1,
      'ema_decay': 0.0,           # 0 = no moving average of the parameters
      'log_every': '20 steps',
      'eval_every': '1 epochs',   # validation and checkpoint
      'patience': 0,              # stop after so many validations without a better score; 0 = never
      'keep_latest': 2,           # checkpoints
      'keep_best': 1,
      'monitor': 'loss',          # the validation score that names the best checkpoint; for a text metric the split is decoded greedily
      'init_from': '',            # a run folder whose parameters start this one
    },
    'evaluate': {
      'checkpoint': 'best',       # best, latest, or a step
      'average': 1,               # mean of the parameters of the last n checkpoints
      'batch_size': 64,
      'metrics': (),              # () = the task's own
      'shuffled': True,           # print the score with the inputs given to the wrong examples beside
      'bootstrap_samples': 1000,
    },
    'decoding': {
      'method': 'beam',           # greedy, sample, beam
      'max_length': 0,            # 0 = data.max_length
      'min_length': 0,
      'beam_size': 4,
      'n_best': 1,
      'length_penalty': 0.6,
      'temperature': 1.0,
      'top_k': 0,
      'top_p': 1.0,
    },
    'parallel': {'strategy': 'auto'},  # auto, jit (one device), pmap (all local devices)
  }).lock()  # fmt: skip


def smoke(config: ConfigDict) -> ConfigDict:
  """The same experiment in seconds on a CPU: generated pictures, a few steps, small parts."""
  config.data.name = 'unicode_pictures/tiny'
  config.data.fields = {}
  config.data.splits = {'train': 'train', 'valid': 'valid', 'test': ('test_faces',)}
  config.data.max_valid_examples = 16
  config.model.dim = 32
  for part in (*config.model.encoders.values(), config.model.head):
    part.unlock()['layers'] = 1
  config.train.duration, config.train.log_every, config.train.eval_every = '6 steps', '2 steps', '3 steps'
  config.train.batch_size = config.evaluate.batch_size = 16
  config.evaluate.bootstrap_samples = 20
  config.decoding.max_length = 12
  return config


def parse_arg(arg: str, **spec):
  """`:arg` of a config file, e.g. 'smoke,language=zh', against defaults that name the keys and their types.

  Returns a ConfigDict with every key of `spec`. A bare name means True.
  """
  values = ConfigDict(spec)
  for part in filter(None, (arg or '').split(',')):
    key, _, text = part.partition('=')
    if key not in spec:
      raise UserError(f'unknown argument {key!r} after the colon. Nearest: {nearest(key, spec)!r}.')
    kind = type(spec[key])
    try:
      values[key] = text.lower() in ('', '1', 'true', 'yes') if kind is bool else kind(text)
    except ValueError:
      raise UserError(f'argument {key}={text!r}: expected {kind.__name__}.') from None
  return values


def load_config(spec: str) -> ConfigDict:
  """Reads 'path.py' or 'path.py:arg'. Errors in the file name its line."""
  path, _, arg = spec.partition(':')
  file = next((place for place in (pathlib.Path(path), ROOT / path) if place.is_file()), None)
  if file is None or file.suffix != '.py':
    choices = [str(p.relative_to(ROOT)) for p in ROOT.glob('configs/*/*.py')]
    raise UserError(f'no config file {path!r}. Nearest: {nearest(path, choices)!r}.')
  module_spec = importlib.util.spec_from_file_location('experiment_config', file)
  module = importlib.util.module_from_spec(module_spec)
  try:
    module_spec.loader.exec_module(module)
    config = module.get_config(arg)
    if not isinstance(config, ConfigDict):
      raise TypeError(f'get_config returns {config!r}, not the config')
    config.name, config.card = spec, inspect.cleandoc(module.__doc__ or '')
  except Exception as error:  # whatever a person's file raises
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == module_spec.origin]
    line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
    raise UserError(f'{path}{f", line {line}" if line else ""}: {_one_line(error)}') from None
  return config


def _one_line(error) -> str:
  text = ' '.join(str(error.args[0] if error.args else error).split())
  return text if isinstance(error, UserError) else f'{type(error).__name__}: {text}'


# Groups whose keys are the user's, or those of the part that they name.
OPEN = ('data.fields', 'data.splits', 'model.encoders', 'model.fusion', 'model.head')
COUNTS = ('data.max_length', 'train.batch_size', 'train.accumulate', 'train.keep_latest', 'evaluate.batch_size', 'evaluate.average')
FRACTIONS = ('model.dropout', 'train.label_smoothing', 'train.ema_decay')
DTYPES = ('float32', 'bfloat16', 'float16')


def complete(config: ConfigDict, dropping: bool = False) -> ConfigDict:
  """Fills in the fields of the parts chosen by name and checks keys, types and names. Returns a locked copy.

  `dropping`: options that a part does not have, but another of its kind, are left out: its name was changed.

  Raises:
    UserError: an unknown name or key, with the nearest valid one; a value of the wrong type or out of its range; a
      duration that is none.
  """
  from mmlm.models.encoders import ENCODERS  # the tables import flax: only commands that need them pay
  from mmlm.models.fusion import FUSIONS
  from mmlm.models.heads import HEADS

  config = _by_schema(config, default_config()).unlock()
  model = config.model
  if not model.encoders and config.task != 'language_model':
    raise UserError(f'model.encoders is empty: name one a modality, of {sorted(ENCODERS)}.')
  for modality in model.encoders:
    model.encoders[modality] = _complete_part(f'model.encoders.{modality}', model.encoders[modality], ENCODERS, dropping)
  model.fusion = _complete_part('model.fusion', model.fusion, FUSIONS, dropping)
  model.head = _complete_part('model.head', model.head, HEADS, dropping)
  for key in ('optimizer.warmup', 'train.duration', 'train.log_every', 'train.eval_every'):
    parse_duration(_get(config, key), key)
  for key in (*COUNTS, *FRACTIONS):
    value, wanted = _get(config, key), '1 or more' if key in COUNTS else '0 or more, and less than 1'
    if not (value >= 1 if key in COUNTS else 0 <= value < 1):
      raise UserError(f'{key}={value}: expected {wanted}.')
  if model.dtype not in DTYPES:
    raise UserError(f'model.dtype={model.dtype!r}. Nearest: {nearest(model.dtype, DTYPES)!r} of {DTYPES}.')
  splits = config.data.splits
  if set(splits) != {'train', 'valid', 'test'} or not isinstance(splits.train, str):
    raise UserError(f"data.splits={splits.to_dict()}: expected one split as 'train', one or several as 'valid' and 'test'.")
  if config.train.batch_size % config.train.accumulate:
    raise UserError(f'train.accumulate={config.train.accumulate} does not divide train.batch_size={config.train.batch_size}.')
  return config.lock()


def _by_schema(config: ConfigDict, schema: ConfigDict, prefix: str = '') -> ConfigDict:
  """A copy with every key of the schema: unknown ones are errors, missing ones get their default."""
  out = ConfigDict(schema.to_dict()).unlock()
  for key in config:
    name = prefix + key
    if key not in schema:
      raise UserError(f'{name}: unknown key. Nearest: {_nearest_key(name)}.')
    if not isinstance(schema[key], ConfigDict):
      out[key] = _checked(name, config[key], schema[key])
    elif not isinstance(config[key], ConfigDict):
      raise UserError(f'{name}={config[key]!r}: expected a group with keys.')
    else:
      out[key] = ConfigDict(config[key].to_dict()) if name in OPEN else _by_schema(config[key], schema[key], f'{name}.')
  return out


def _keys(config: ConfigDict, prefix: str = '') -> list[str]:
  """The full names of all leaves."""
  parts = [_keys(v, f'{prefix}{k}.') if isinstance(v, ConfigDict) else [prefix + k] for k, v in config.items()]
  return [name for part in parts for name in part]


def _nearest_key(name: str, config: ConfigDict | None = None) -> str:
  """The key that was meant: one with the same last word if there is one."""
  names = _keys(config or default_config())
  same = [n for n in names if n.rpartition('.')[2] == name.rpartition('.')[2]]
  return nearest(name, same or names)


def _get(config, key: str):
  return functools.reduce(lambda node, part: node[part], key.split('.'), config)


# Fields that the model itself hands to its parts.
INHERITED = ('parent', 'name', 'dim', 'dropout', 'dtype', 'vocab_size', 'max_length')


def _complete_part(key: str, part, table: dict, dropping: bool) -> ConfigDict:
  if not isinstance(part, ConfigDict):
    raise UserError(f"{key}={part!r}: expected {{'name': one of {sorted(table)}, and its options}}.")
  part = dict(part)
  name = part.pop('name', None)
  if name not in table:
    raise UserError(f'{key}.name: no {name!r}. Nearest: {nearest(str(name), table)!r} of {sorted(table)}.')
  fields = {f.name: f.default for f in dataclasses.fields(table[name]) if f.name not in INHERITED}
  others = {f.name for cls in table.values() for f in dataclasses.fields(cls)} if dropping else ()
  for option, value in part.items():
    if option not in fields and option not in others:
      raise UserError(f'{key}.{option}: {name!r} has no such option. Nearest: {nearest(option, fields)!r}.')
    if option in fields:
      fields[option] = _checked(f'{key}.{option}', value, fields[option])
  return ConfigDict({'name': name, **fields}).lock()


def _checked(key: str, value, default):
  if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  if isinstance(default, tuple) and isinstance(value, list):
    return tuple(value)
  if type(value) is not type(default):
    raise UserError(f'{key}={value!r}: expected {type(default).__name__}, for example {default!r}.')
  return value


def override(config: ConfigDict, assignments: dict[str, str]) -> ConfigDict:
  """Completes a config and applies {'optimizer.learning_rate': '3e-4'} with its types; completes again."""
  # The names of parts come first: they say which options there are.
  names = {key: text for key, text in assignments.items() if key.startswith('model.') and key.endswith('.name')}
  config = complete(_assign(complete(config), names), dropping=True)
  return complete(_assign(config, {key: text for key, text in assignments.items() if key not in names}))


def _assign(config: ConfigDict, assignments: dict[str, str]) -> ConfigDict:
  config = ConfigDict(config.to_dict()).unlock()
  for key, text in assignments.items():
    node, (*parents, leaf) = config, key.split('.')
    for parent in parents:
      node = node.get(parent) if isinstance(node, ConfigDict) else None
    if not isinstance(node, ConfigDict) or leaf not in node:
      raise UserError(f'--config.{key}: unknown key. Nearest: --config.{_nearest_key(key, config)}.')
    node[leaf] = _parse_value(key, text, node[leaf])
  return config


def _parse_value(key: str, text: str, old):
  if isinstance(old, ConfigDict):
    raise UserError(f'--config.{key} is a group with the keys {sorted(old)}: name one of them.')
  if isinstance(old, str):
    return text
  try:
    value = ast.literal_eval({'true': 'True', 'false': 'False'}.get(text.lower(), text))
  except (ValueError, SyntaxError):
    value = (text,) if isinstance(old, tuple) else text
  if isinstance(old, tuple) and not isinstance(value, tuple | list):
    value = (value,)
  return _checked(f'--config.{key}', value, old)


def parse_duration(text: str, key: str) -> tuple[float, str]:
  """'10 epochs' -> (10.0, 'epochs'). Units: steps, epochs, examples."""
  match = re.fullmatch(r'\s*(\d+(?:\.\d+)?)\s*(step|epoch|example)s?\s*', str(text))
  if not match:
    raise UserError(f"{key}={text!r}: expected a duration such as '500 steps', '10 epochs' or '90000 examples'.")
  return float(match[1]), match[2] + 's'


def to_steps(text: str, key: str, batch_size: int, steps_per_epoch: int) -> int:
  """A duration in training steps, rounded up."""
  amount, unit = parse_duration(text, key)
  steps = {'steps': amount, 'epochs': amount * steps_per_epoch, 'examples': amount / batch_size}[unit]
  return math.ceil(steps)


def from_dict(values: dict) -> ConfigDict:
  """A config read back from config.json: JSON has lists where configs have tuples."""
  return ConfigDict(_tuples(values))


def _tuples(value):
  if isinstance(value, list):
    return tuple(map(_tuples, value))
  return {k: _tuples(v) for k, v in value.items()} if isinstance(value, dict) else value
