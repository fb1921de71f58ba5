"""The schema of an experiment's config with its defaults, and how a config is read, completed and checked.

A config file holds one function, `get_config(arg='')`, that starts from `default_config()` and sets what differs. What
may be set is what stands here, and for the parts chosen by name (encoders, fusion, head) the fields of their modules.
"""

import ast
import dataclasses
import inspect
import math
import pathlib
import re
import runpy
import traceback

from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from mmlm.decoding.score_fusion import FusionOptions
from mmlm.decoding.search import SearchOptions
from mmlm.models.encoders import ENCODERS
from mmlm.models.fusion import FUSIONS
from mmlm.models.heads import HEADS
from mmlm.utils.choices import nearest, one_of
from mmlm.utils.errors import UserError
from mmlm.word_vectors.objectives import WORD_VECTORS

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent

# The keys that may change when a run goes on: they decide how it is run, never what it computes.
NOT_PART_OF_THE_RUN = (
  'name',
  'card',
  'data.dir',
  'data.source',
  'data.workers',
  'data.skip_broken',
  'train.log_every',
  'parallel',
  'evaluate',
  'watch',
)


def default_config() -> ConfigDict:
  """Every key with its default. Durations are texts such as '500 steps', '10 epochs' or '90000 examples'."""
  return ConfigDict(
    {
      # name, card: the file the config was read from with its argument, and that file's docstring
      # task: a name in mmlm.tasks.TASKS        seed: initial parameters, order of the data, dropout
      'name': '',
      'card': '',
      'task': 'captioning',
      'seed': 0,
      # name: a set of ours, 'manifest', 'text' (data/sources/plain_text.py), or any TFDS folder under data.dir, e.g. 'coco_captions/2014'
      # dir: where prepared data sets and cached features live
      # source: the original files; '' = $MMLM_DATA/<name>
      # fields: {our field: the set's feature}; empty = the builder's own
      # splits: names of the set's splits; for manifests, paths of JSON lines
      # max_length: tokens of a target (end token included) or text; longer examples leave training, counted
      # buckets: lengths of padded texts and targets; () = one bucket of max_length
      # languages: codes such as 'en': Moses' rules before the tokenizer and after it; '' = texts as they are
      # workers: loader processes; 0 = threads in this one
      # skip_broken: leave out pictures and sounds that cannot be read, and count them
      # max_valid_examples: validate on so many examples during training; 0 = all
      # stream: how a language model reads running text (data/running_text.py): '' = a sentence an example, 'windows' of max_length tokens that begin
      #   anywhere, 'continuous' lanes (an LSTM, whose state goes on from step to step), 'packed' documents in rows of max_length
      # ends: the end of a document is a token to be predicted        across: packed documents see those before them in their row
      'data': {
        'name': 'unicode_pictures',
        'dir': 'data',
        'source': '',
        'fields': {},
        'splits': {'train': 'train', 'valid': 'valid', 'test': ('test',)},
        'train_ops': ('decode', 'resize(224)', 'flip', 'normalize'),
        'eval_ops': ('decode', 'resize(224)', 'normalize'),
        'max_length': 40,
        'buckets': (),
        'languages': {'text': '', 'target': ''},
        'workers': 0,
        'skip_broken': False,
        'max_valid_examples': 0,
        'stream': '',
        'ends': True,
        'across': True,
      },
      # kind: see data/tokenizers/tokenizer.py; 'wordpiece' is that of the BERT named by source, 'run' that of the run folder named by source;
      # 'gpt2' that of the GPT-2 named by source; 'none' where no text is read or written
      # exact: nothing of a text is lost ('bpe', 'char'; 'word' is then what stands between spaces)       mask: a token for masked ones
      'tokenizer': {
        'kind': 'bpe',
        'source': '',
        'vocab_size': 4000,
        'lowercase': True,
        'min_frequency': 2,
        'exact': False,
        'mask': False,
      },
      # dim: width of every sequence that leaves an encoder
      # dtype: of the computation; parameters and optimizer state are float32
      # shared_embeddings: one table for the text encoder, the decoder's inputs and, when tied, its output
      # encoders: {modality: {'name': ..., the fields of that encoder}}; fusion and head have a name and fields too
      # context: an encoder over the parts of an example (the utterances of a video), which are then fused one by one; '' = none
      # modality_dropout: in training each modality of an example is left out so often, but never all
      'model': {
        'dim': 256,
        'dropout': 0.1,
        'dtype': 'float32',
        'shared_embeddings': False,
        'encoders': {},
        'fusion': {'name': 'concatenation'},
        'context': {'name': ''},
        'modality_dropout': 0.0,
        'head': {'name': 'transformer_decoder'},
      },
      # name: adamw, adafactor, lion, sgd       schedule: cosine, linear, inverse_sqrt, constant
      # final_fraction: of the learning rate, at the end of cosine and linear
      # average_after: the mean of all parameters is evaluated from the first validation on that is worse than the best of those more than so
      #   many before it (NT-ASGD, Merity et al. 2018); 0 = never
      # clip_norm: global norm of the gradient; 0 = no clipping
      # decay_rules: (regex, multiplier of weight_decay); rate_rules: (regex, multiplier of learning_rate), 0 freezes
      # lora_rules: (regex, rank) of the matrices that stand still and learn a low-rank product (training/lora.py); lora_alpha scales it
      'optimizer': {
        'name': 'adamw',
        'learning_rate': 1e-3,
        'schedule': 'cosine',
        'warmup': '200 steps',
        'final_fraction': 0.0,
        'beta1': 0.9,
        'beta2': 0.98,
        'epsilon': 1e-9,
        'weight_decay': 0.01,
        'clip_norm': 1.0,
        'average_after': 0,
        'decay_rules': (('.*/(bias|scale|positions)', 0.0), ('.*', 1.0)),
        'rate_rules': (('.*', 1.0),),
        'lora_rules': (),
        'lora_alpha': 16.0,
      },
      # batch_size: over all devices, accumulation included; accumulate: micro-batches in one step
      # batch_tokens: padded tokens of a batch, whose rows are then a multiple of batch_size; 0 = batch_size rows
      # ema_decay: 0 = no moving average of the parameters
      # eval_every: validation and checkpoint; keep_latest, keep_best: checkpoints
      # patience: stop after so many validations without a better score; 0 = never
      # monitor: the validation score that names the best checkpoint; for a text metric the split is decoded greedily
      # start_from: a run folder whose parameters, as it is evaluated, are the first ones here; start_rules: (regex, whether to take it),
      #   or in place of True its name there, with \\1 for the first group of the regex: ('encoders_text/embeddings/(.*)', 'head/tokens/\\1')
      'train': {
        'duration': '10 epochs',
        'batch_size': 64,
        'batch_tokens': 0,
        'accumulate': 1,
        'label_smoothing': 0.1,
        'ema_decay': 0.0,
        'log_every': '20 steps',
        'eval_every': '1 epochs',
        'patience': 0,
        'keep_latest': 2,
        'keep_best': 1,
        'monitor': 'loss',
        'start_from': '',
        'start_rules': (('.*', True),),
      },
      # non_finite: what a loss or gradient that is not finite does: 'stop', or 'skip' the update and count it
      # skips_in_a_row: stop after so many
      # slow_seconds: name a batch, an example or a step that takes longer; 0 = never
      # stop_seconds: end the training, with exit code 70, when a batch or a step takes longer (a lost device or host); 0 = never
      'watch': {
        'non_finite': 'stop',
        'skips_in_a_row': 3,
        'slow_seconds': 60.0,
        'stop_seconds': 0.0,
      },
      # checkpoint: best, latest, or a step; average: mean of the parameters of the last n checkpoints
      # metrics: () = the task's own
      # reference_words: {split: words of all its references}; what Moses' rules must give, or the evaluation fails
      # stride: tokens by which the windows over running text slide; 0 = data.max_length, side by side
      # similarity: of word vectors, the folder or file of similarity sets and analogies; '' = $MMLM_DATA/text/wordsim
      # shuffled: print the score with the inputs given to the wrong examples beside
      'evaluate': {
        'checkpoint': 'best',
        'average': 1,
        'batch_size': 64,
        'metrics': (),
        'reference_words': {},
        'shuffled': True,
        'bootstrap_samples': 1000,
        'stride': 0,
        'similarity': '',
      },
      # The fields of SearchOptions with its defaults (beam search) and of FusionOptions; max_length: 0 = data.max_length
      'decoding': {
        f.name: f.default
        for part in (SearchOptions, FusionOptions)
        for f in dataclasses.fields(part)
        if not f.name.endswith('_id')
      }
      | {'max_length': 0},
      # strategy: auto, jit (one device), pmap (all devices, each with all parameters), mesh (parameters divided, parallel/strategies.py)
      # Of mesh alone. mesh: sizes of its axes data, fsdp and tensor; -1 = the devices that are left
      # rules: names of ready-made sets of parallel/rules.py and (regex, axis of each of the last dimensions) before them
      # sequence: activations between the blocks of a Transformer are divided in time over tensor
      'parallel': {
        'strategy': 'auto',
        'mesh': 'data=-1',
        'rules': ('transformer',),
        'sequence': False,
      },
    }
  ).lock()


def smoke(config: ConfigDict) -> ConfigDict:
  """The same experiment in seconds on a CPU: a generated set, a few steps, small parts."""
  if config.task in ('classification', 'regression'):
    return _smoke_of_labels(config)
  if config.task in ('language_model', 'masked_language_model'):
    return _smoke_of_language(config)
  if 'audio' in config.model.encoders:
    return _smoke_of_speech(config)
  reads_text = 'text' in config.model.encoders
  if reads_text:
    config.data.name = 'numerals/tiny'
  else:
    config.data.name = 'unicode_pictures/tiny'
  config.data.fields = {}
  config.data.splits = {
    'train': 'train',
    'valid': 'valid',
    'test': ('test' if reads_text else 'test_faces',),
  }
  config.evaluate.reference_words = {}
  config.model.dim = 32
  for part in (*config.model.encoders.values(), config.model.head):
    part.unlock()['layers'] = 1
  config.train.batch_tokens = config.train.batch_tokens and 400
  config.decoding.max_length = 12
  return _few_steps(config)


def _few_steps(config: ConfigDict) -> ConfigDict:
  config.data.max_valid_examples = 16
  config.train.duration = '6 steps'
  config.train.log_every = '2 steps'
  config.train.eval_every = '3 steps'
  config.train.batch_size = config.evaluate.batch_size = 16
  config.train.keep_latest = config.evaluate.average = 1
  config.evaluate.bootstrap_samples = 20
  return config


def _smoke_of_speech(config: ConfigDict) -> ConfigDict:
  """On generated keypad tones, to their digits; where CTC learns a transcript this is the digits, and the target their words."""
  translates = config.model.head.get('ctc_labels') == 'transcript'
  config.data.name = 'keypad_tones/tiny'
  config.data.fields = {
    'id': 'id',
    'audio': 'audio',
    'targets': 'words' if translates else 'digits',
  } | ({'transcript': 'digits'} if translates else {})
  config.data.splits = {'train': 'train', 'valid': 'valid', 'test': ('test',)}
  config.data.train_ops = (
    'decode_sound(16000)',
    'speed',
    'log_mel(20)',
    'standardize',
    'spec_augment(2, 1, 4, 1, 10)',
  )
  config.data.eval_ops = ('decode_sound(16000)', 'log_mel(20)', 'standardize')
  # one shape: most of the time goes into compilation
  config.data.max_length = 400
  config.data.buckets = ()
  config.tokenizer = {
    'kind': 'char',
    'source': '',
    'vocab_size': 100,
    'lowercase': True,
    'min_frequency': 1,
  }
  config.model.dim = 32
  audio = config.model.encoders.audio.unlock()
  audio.update(
    {'width': 20, 'planes': 1, 'channels': 4, 'layers': 1}
    | ({'kernel': 3} if audio.name == 'conformer' else {})
  )
  if config.model.head.name != 'ctc':
    config.model.head.unlock()['layers'] = 1
  config.train.batch_tokens = 0
  config.decoding.max_length = 12
  config.decoding.beam_size = 2
  return _few_steps(config)


def _smoke_of_language(config: ConfigDict) -> ConfigDict:
  """On names of characters, or English numerals where an encoder reads them."""
  masked = config.task == 'masked_language_model'
  if masked:
    config.data.name = 'numerals/tiny'
  else:
    config.data.name = 'unicode_pictures/tiny'
  if masked:
    config.data.fields = {'id': 'id', 'text': 'en'}
  else:
    config.data.fields = {'id': 'id', 'targets': 'caption'}
  config.data.splits = {
    'train': 'train',
    'valid': 'valid',
    'test': ('test' if masked else 'test_faces',),
  }
  config.data.max_length = 32
  config.data.buckets = ()
  config.tokenizer.vocab_size = 400
  config.tokenizer.min_frequency = 1
  if config.tokenizer.kind in ('wordpiece', 'gpt2', 'run'):
    config.tokenizer.kind = 'bpe'
    config.tokenizer.source = ''
  config.model.dim = 32
  if masked:
    part = config.model.encoders.text
  else:
    part = config.model.head
  sizes = {
    'layers': 1,
    'heads': 2,
    'width': 32,
    'ffn_dim': 32,
    'max_positions': 32,
    'hidden_dim': 32,
  }
  part.unlock().update(
    {name: value for name, value in sizes.items() if name == 'layers' or name in part}
    | ({'pretrained': ''} if 'pretrained' in part else {})
  )
  config.train.batch_tokens = config.evaluate.stride = 0
  return _few_steps(config)


def _smoke_of_labels(config: ConfigDict) -> ConfigDict:
  """On the generated sentences, faces and melodies; a modality that these lack is played by one that they have."""
  config.data.name = 'three_modalities/tiny'
  played = {'text': 'text', 'audio': 'audio', 'image': 'image', 'video': 'image'}
  modalities = [played[modality] for modality in config.model.encoders]
  if config.task == 'classification':
    label = 'label'
  else:
    label = 'score'
  config.data.fields = {'id': 'id', 'label': label} | {
    modality: modality for modality in modalities
  }
  config.data.splits = {'train': 'train', 'valid': 'valid', 'test': ('test',)}
  config.data.train_ops = config.data.eval_ops = ("decode('L')", "normalize('half')")
  config.data.max_length = 16
  config.data.buckets = ()
  config.tokenizer = {
    'kind': 'word' if 'text' in modalities else 'none',
    'source': '',
    'vocab_size': 200,
    'lowercase': True,
    'min_frequency': 1,
  }
  text = {
    name: value
    for name, value in config.model.encoders.get('text', {}).items()
    if name in ('name', 'windows')
  }
  if text.get('name') in (None, 'features', 'feature_recurrent'):
    text = {'name': 'text_transformer', 'layers': 1}
  sizes = {'bert': {'width': 24, 'layers': 1, 'heads': 2, 'ffn_dim': 24, 'max_positions': 16}}
  encoders = {
    'text': text | sizes.get(text['name'], {}),
    'image': {'name': 'vit', 'patch': 8, 'layers': 1},
    'audio': {'name': 'feature_recurrent', 'width': 12},
  }
  config.model.encoders = {modality: encoders[modality] for modality in modalities}
  config.model.context = {'name': ''}
  config.model.dim = 36
  if config.model.head.name == 'classifier':
    config.model.head.classes = ('negative', 'neutral', 'positive')
  if config.model.head.get('pool') == 'each':
    config.model.head.pool = 'mean'
  config.optimizer.rate_rules = (('.*', 1.0),)
  return _few_steps(config)


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


def chosen(modalities: str, options: dict) -> dict:
  """{modality: options[modality]} of the argument `:modalities=text+audio`."""
  result = {}
  for modality in modalities.split('+'):
    result[modality] = options[one_of('modalities', modality, options)]
  return result


def load_config(spec: str) -> ConfigDict:
  """Reads 'path.py' or 'path.py:arg'. Errors in the file name its line."""
  path, _, arg = spec.partition(':')
  file = next((place for place in (pathlib.Path(path), ROOT / path) if place.is_file()), None)
  if file is None or file.suffix != '.py':
    choices = [str(p.relative_to(ROOT)) for p in ROOT.glob('configs/*/*.py')]
    raise UserError(f'no config file {path!r}. Nearest: {nearest(path, choices)!r}.')
  try:
    module = runpy.run_path(str(file))
    config = module['get_config'](arg)
    if not isinstance(config, ConfigDict):
      raise TypeError(f'get_config returns {config!r}, not the config')
    config.name = spec
    config.card = inspect.cleandoc(module['__doc__'] or '')
  except Exception as error:  # whatever a person's file raises
    lines = []
    for frame in traceback.extract_tb(error.__traceback__):
      if frame.filename == str(file):
        lines.append(frame.lineno)
    if isinstance(error, SyntaxError):
      line = error.lineno
    elif lines:
      line = lines[-1]
    else:
      line = None
    if isinstance(error, UserError):
      kind = ''
    else:
      kind = f'{type(error).__name__}: '
    text = ' '.join(str(error.args[0] if error.args else error).split())
    raise UserError(f'{path}{f", line {line}" if line else ""}: {kind}{text}') from None
  return config


DURATIONS = ('optimizer.warmup', 'train.duration', 'train.log_every', 'train.eval_every')
COUNTS = (
  'data.max_length',
  'train.batch_size',
  'train.accumulate',
  'train.keep_latest',
  'watch.skips_in_a_row',
  'evaluate.batch_size',
  'evaluate.average',
)
FRACTIONS = ('model.dropout', 'model.modality_dropout', 'train.label_smoothing', 'train.ema_decay')


def complete(config: ConfigDict, dropping: bool = False) -> ConfigDict:
  """Fills in the fields of the parts chosen by name and checks keys, types and names. Returns a locked copy.

  `dropping`: options that a part does not have are left out: they were those of another, and its name was changed.

  Raises:
    UserError: an unknown name or key, with the nearest valid one; a value of the wrong type or out of its range; a
      duration that is none.
  """
  done = ConfigDict(_filled('', config.to_dict(), default_config().to_dict(), dropping))
  values = flatten_dict(done.to_dict(), sep='.')
  if not done.model.encoders and done.task not in ('language_model', 'word_vectors'):
    raise UserError(f'model.encoders is empty: name one a modality, of {sorted(ENCODERS)}.')
  one_of('model.dtype', done.model.dtype, ('float32', 'bfloat16', 'float16'))
  one_of('watch.non_finite', done.watch.non_finite, ('stop', 'skip'))
  for key in DURATIONS:
    parse_duration(values[key], key)
  of_parts = [
    key
    for key in values
    if key.startswith('model.') and key.endswith(('.attention_dropout', '.grid_dropout'))
  ]
  for key in (*COUNTS, *FRACTIONS, *of_parts):
    value = values[key]
    if key in COUNTS:
      wanted = '1 or more'
    else:
      wanted = '0 or more, and less than 1'
    if not (value >= 1 if key in COUNTS else 0 <= value < 1):
      raise UserError(f'{key}={value}: expected {wanted}.')
  splits = done.data.splits
  if set(splits) != {'train', 'valid', 'test'} or not isinstance(splits.train, str):
    raise UserError(
      f"data.splits={splits.to_dict()}: expected one split as 'train', one or several as 'valid' and 'test'."
    )
  return done.lock()


# The options of a part are the fields of the class that its name stands for, but those that the model itself hands to its parts.
INHERITED = ('parent', 'name', 'dim', 'dropout', 'dtype', 'vocab_size', 'max_length', 'embeddings')


def _filled(key: str, value, default, dropping: bool):
  """`value` with the defaults of what it lacks. Every key and type is checked; a part's name decides which options it has."""
  if not isinstance(default, dict):
    return _checked(key, value, default)
  if not isinstance(value, dict):
    raise UserError(f'{key}={value!r}: expected a group with keys, such as {default}.')
  if key in ('data.fields', 'data.splits', 'evaluate.reference_words'):  # their keys are the user's
    return value
  parts = {'model.fusion': FUSIONS, 'model.head': HEADS | WORD_VECTORS, 'model.context': ENCODERS}
  if key.startswith('model.encoders.'):
    table = ENCODERS
  else:
    table = parts.get(key)
  if key == 'model.context' and not value.get('name'):
    table = None
  if key == 'model.encoders':
    default = dict.fromkeys(value, {'name': '...'})
  elif table:
    name = one_of(f'{key}.name', value.get('name'), table)
    default = {'name': name} | {
      f.name: f.default for f in dataclasses.fields(table[name]) if f.name not in INHERITED
    }
  unknown = [name for name in value if name not in default]
  if unknown and not dropping:
    name, near = (
      f'{key}.{name}'.lstrip('.') for name in (unknown[0], nearest(unknown[0], default))
    )
    raise UserError(f'{name}: unknown key. Nearest: {near}.')
  return {
    name: _filled(f'{key}.{name}'.lstrip('.'), value.get(name, child), child, dropping)
    for name, child in default.items()
  }


def _checked(key: str, value, default):
  if (type(value), type(default)) in ((int, float), (list, tuple)):
    value = type(default)(value)
  if type(value) is not type(default):
    raise UserError(f'{key}={value!r}: expected {type(default).__name__}, for example {default!r}.')
  return value


def override(config: ConfigDict, assignments: dict[str, str]) -> ConfigDict:
  """Completes a config and applies {'optimizer.learning_rate': '3e-4'} with its types; completes again."""
  # The names of parts come first: they say which options there are.
  names = {}
  for key, text in assignments.items():
    if key.startswith('model.') and key.endswith('.name'):
      names[key] = text
  config = complete(_assign(complete(config), names), dropping=True)
  return complete(_assign(config, assignments))


def _assign(config: ConfigDict, assignments: dict[str, str]) -> ConfigDict:
  values = flatten_dict(config.to_dict(), sep='.')
  for key, text in assignments.items():
    if group := sorted(
      name.removeprefix(f'{key}.') for name in values if name.startswith(f'{key}.')
    ):
      raise UserError(f'--config.{key} is a group with the keys {group}: name one of them.')
    if key not in values:
      same = [name for name in values if name.split('.')[-1] == key.split('.')[-1]]
      raise UserError(
        f'--config.{key}: unknown key. Nearest: --config.{nearest(key, same or values)}.'
      )
    values[key] = _parse_value(key, text, values[key])
  return ConfigDict(unflatten_dict(values, sep='.'))


def _parse_value(key: str, text: str, old):
  if isinstance(old, str):
    return text
  try:
    value = ast.literal_eval({'true': 'True', 'false': 'False'}.get(text.lower(), text))
  except (ValueError, SyntaxError):
    value = text
  if isinstance(old, tuple) and not isinstance(value, tuple | list):
    # not at commas within brackets
    if isinstance(value, str):
      value = tuple(re.split(r',(?![^(]*\))', value))
    else:
      value = (value,)
  return _checked(f'--config.{key}', value, old)


def parse_duration(text: str, key: str) -> tuple[float, str]:
  """'10 epochs' -> (10.0, 'epochs'). Units: steps, epochs, examples."""
  match = re.fullmatch(r'\s*(\d+(?:\.\d+)?)\s*(step|epoch|example)s?\s*', str(text))
  if not match:
    raise UserError(
      f"{key}={text!r}: expected a duration such as '500 steps', '10 epochs' or '90000 examples'."
    )
  return float(match[1]), match[2] + 's'


def to_steps(text: str, key: str, batch_size: int, steps_per_epoch: int) -> int:
  """A duration in training steps, rounded up."""
  amount, unit = parse_duration(text, key)
  steps = {'steps': amount, 'epochs': amount * steps_per_epoch, 'examples': amount / batch_size}[
    unit
  ]
  return math.ceil(steps)


def from_dict(values: dict) -> ConfigDict:
  """A config read back from config.json: JSON has lists where configs have tuples."""
  return ConfigDict(_tuples(values))


def _tuples(value):
  if isinstance(value, list):
    return tuple(map(_tuples, value))
  if isinstance(value, dict):
    return {k: _tuples(v) for k, v in value.items()}
  return value
