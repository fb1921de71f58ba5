"""The keys of an experiment's config: one a line, with default, comment, limits and properties.

A config file holds one function, `get_config(arg='')`, that starts from `default_config()` and sets
what differs. The options of the parts chosen by name (encoders, fusion, head) are the fields of
their classes: see the tables ENCODERS, FUSIONS and HEADS in mmlm/models.
"""

import collections
import dataclasses

from ml_collections import ConfigDict

from mmlm.models.encoders import ENCODERS
from mmlm.models.fusion import FUSIONS
from mmlm.models.heads import HEADS
from mmlm.utils.options import FRACTION, POSITIVE, option, section

# Heads by name. A package above this one that trains other models adds its classes here when it is
# imported (mmlm/word_vectors).
HEAD_CLASSES: collections.ChainMap[str, type] = collections.ChainMap({}, HEADS)

ALL_PARAMETERS = '.*'


@dataclasses.dataclass
class Languages:
  """Codes such as 'en': Moses' rules before and after the tokenizer; '' = texts as they are."""

  text: str = option('')
  target: str = option('')


@dataclasses.dataclass
class Data:
  """What is read, and how it becomes batches."""

  name: str = option(
    'unicode_pictures',
    "a data set of ours, 'manifest', 'text' or 'parallel' (data/sources), "
    "or a TFDS folder below data.dir, e.g. 'coco_captions/2014'",
  )
  dir: str = option('data', 'folder of prepared data sets and cached features', resumable=True)
  source: str = option('', "the original files; '' = $MMLM_DATA/<name>", resumable=True)
  fields: dict = option({}, "{our field: the set's feature}; {} = the set's own", free_keys=True)
  splits: dict = option(
    {'train': 'train', 'valid': 'valid', 'test': ('test',)},
    "names of the data set's splits, of a manifest paths; 'valid' and 'test' may have several",
    free_keys=True,
  )
  train_ops: tuple = option(
    ('decode', 'resize(224)', 'flip', 'normalize'), 'transforms of training examples, in order'
  )
  eval_ops: tuple = option(('decode', 'resize(224)', 'normalize'), 'of all other examples')
  max_length: int = option(
    40,
    'tokens of a text or target, end token included, and frames; '
    'longer examples are counted and left out',
    limits=POSITIVE,
  )
  buckets: tuple = option((), 'lengths that batches are padded to; () = max_length alone')
  languages: Languages = section(Languages)
  workers: int = option(0, 'loader processes; 0 = threads of this one', resumable=True)
  skip_broken: bool = option(
    False, 'leave out pictures and sounds that cannot be read, and count them', resumable=True
  )
  max_valid_examples: int = option(0, 'examples of a validation during training; 0 = all')
  stream: str = option(
    '',
    "how a language model reads running text (data/running_text.py): '' = a sentence an example, "
    "'windows' of max_length tokens at random places, 'continuous' lanes (an LSTM, whose state is "
    "carried from step to step), 'packed' documents in sequences of max_length",
  )
  ends: bool = option(True, 'the end of a document is a token to be predicted')
  across: bool = option(True, 'packed documents attend to earlier documents of their sequence')


@dataclasses.dataclass
class Tokenizer:
  """How text becomes tokens."""

  kind: str = option(
    'bpe',
    "see data/tokenizers; 'wordpiece' and 'gpt2' are those of the model in `source`, 'run' that of "
    "the run folder in `source`; 'none' where no text is read or written",
  )
  source: str = option('', 'folder that the tokenizer is read from')
  vocab_size: int = option(4000)
  lowercase: bool = option(True)
  min_frequency: int = option(2, 'rarer words, or pairs of pieces, are left out')
  exact: bool = option(
    False, "decoding gives the same text back ('bpe', 'char'; 'word' then splits at spaces alone)"
  )
  mask: bool = option(False, 'add a token that stands for masked ones')


@dataclasses.dataclass
class Model:
  """Encoders, fusion and head. `dim`, `dropout` and `dtype` apply to all parts."""

  dim: int = option(256, 'width of every sequence that leaves an encoder')
  dropout: float = option(0.1, limits=FRACTION, traced=True)
  dtype: str = option(
    'float32',
    'of the computation; parameters and optimizer state are float32',
    choices=('float32', 'bfloat16', 'float16'),
  )
  shared_embeddings: bool = option(
    False,
    'one embedding table for the text encoder, the inputs of the decoder and, if tied, its outputs',
  )
  encoders: dict = option(
    {},
    "{modality: {'name': ..., options of that encoder}}",
    parts=ENCODERS,
    part_of_each_key=True,
  )
  fusion: dict = option({'name': 'concatenation'}, parts=FUSIONS)
  context: dict = option(
    {'name': ''},
    'an encoder over the parts of an example (the utterances of a video), which are then fused '
    "one by one; '' = none",
    parts=ENCODERS,
    may_be_empty=True,
  )
  modality_dropout: float = option(
    0.0,
    'in training, share of examples that each modality is missing from, but never all of them',
    limits=FRACTION,
    traced=True,
  )
  head: dict = option({'name': 'transformer_decoder'}, parts=HEAD_CLASSES)


@dataclasses.dataclass
class Optimizer:
  """How gradients change parameters (training/optimizers.py)."""

  name: str = option('adamw', 'adamw, adafactor, lion, sgd')
  learning_rate: float = option(1e-3, 'the peak of the schedule', schedule=True)
  schedule: str = option('cosine', 'cosine, linear, inverse_sqrt, constant', schedule=True)
  warmup: str = option('200 steps', 'linear, from 0', duration=True, share=True, schedule=True)
  final_fraction: float = option(
    0.0, 'of the learning rate, at the end of cosine and linear', schedule=True
  )
  beta1: float = option(0.9)
  beta2: float = option(0.98)
  epsilon: float = option(1e-9)
  weight_decay: float = option(0.01, 'decoupled', traced=True)
  clip_norm: float = option(1.0, 'global norm of the gradient; 0 = no clipping')
  average_after: int = option(
    0,
    'evaluate the mean of all parameters since the first validation that is worse than the best '
    'of those more than so many before it (NT-ASGD, Merity et al. 2018); 0 = never',
  )
  decay_rules: tuple = option(
    (('.*/(bias|scale|positions)', 0.0), (ALL_PARAMETERS, 1.0)),
    '(regex, multiplier of weight_decay)',
  )
  rate_rules: tuple = option(
    ((ALL_PARAMETERS, 1.0),), '(regex, multiplier of learning_rate); 0 freezes'
  )
  lora_rules: tuple = option(
    (), '(regex, rank) of frozen matrices that learn a low-rank product (training/lora.py)'
  )
  lora_alpha: float = option(16.0, 'scale of these products')


@dataclasses.dataclass
class Train:
  """Length of the run, batches, validation and checkpoints."""

  duration: str = option('10 epochs', 'length of the run', duration=True, schedule=True)
  batch_size: int = option(64, 'examples of a step, over all devices', limits=POSITIVE)
  batch_tokens: int = option(
    0,
    'padded tokens of a batch, whose examples are then a multiple of batch_size; '
    '0 = batch_size examples',
  )
  accumulate: int = option(1, 'micro-batches that a batch is divided into', limits=POSITIVE)
  label_smoothing: float = option(0.1, limits=FRACTION, traced=True)
  ema_decay: float = option(0.0, 'of a moving average of the parameters; 0 = none', limits=FRACTION)
  log_every: str = option(
    '20 steps', duration=True, share=True, resumable=True, outside_program=True
  )
  eval_every: str = option(
    '1 epochs', 'validation and checkpoint', duration=True, share=True, outside_program=True
  )
  patience: int = option(
    0,
    'stop after so many validations without a better score; 0 = never',
    outside_program=True,
  )
  keep_latest: int = option(2, 'checkpoints', limits=POSITIVE, outside_program=True)
  keep_best: int = option(1, 'checkpoints', outside_program=True)
  monitor: str = option(
    'loss',
    'the validation score that chooses the best checkpoint; '
    'for a text metric the split is decoded greedily',
  )
  start_from: str = option('', 'a run folder whose evaluated parameters are the first ones here')
  start_rules: tuple = option(
    ((ALL_PARAMETERS, True),),
    '(regex, whether to take the parameter), or in place of True its name in that run, with '
    "\\1 for the first group of the regex: ('encoders_text/embeddings/(.*)', 'head/tokens/\\1')",
  )


@dataclasses.dataclass
class Watch:
  """What happens when a value is not finite or a device does not answer."""

  non_finite: str = option(
    'stop',
    "on a loss or gradient that is not finite: 'stop', or 'skip' the update and count it",
    choices=('stop', 'skip'),
  )
  skips_in_a_row: int = option(3, 'stop after so many', limits=POSITIVE)
  slow_seconds: float = option(
    60.0, 'report a batch, an example or a step that takes longer; 0 = never'
  )
  stop_seconds: float = option(
    0.0,
    'end the training, with exit code 70, when a batch or a step takes longer '
    '(a lost device or host); 0 = never',
  )


@dataclasses.dataclass
class Evaluate:
  """How `evaluate` scores a run."""

  checkpoint: str = option('best', "'best', 'latest', or a step")
  average: int = option(1, 'mean of the parameters of the last n checkpoints', limits=POSITIVE)
  batch_size: int = option(64, limits=POSITIVE)
  metrics: tuple = option((), "() = the task's own")
  reference_words: dict = option(
    {},
    "{split: words of all its references}: what Moses' rules must give, else evaluation fails",
    free_keys=True,
  )
  shuffled: bool = option(True, 'also score with the inputs of other examples')
  bootstrap_samples: int = option(1000)
  stride: int = option(
    0, 'tokens between the windows over running text; 0 = data.max_length, without overlap'
  )
  similarity: str = option(
    '',
    'of word vectors: folder or file of similarity sets and analogies; '
    "'' = $MMLM_DATA/text/wordsim",
  )


@dataclasses.dataclass
class Decoding:
  """How text is searched for: the fields of SearchOptions and of FusionOptions (mmlm/decoding)."""

  method: str = option('beam', 'greedy, sample, beam')
  max_length: int = option(0, 'tokens to generate, the end token included; 0 = data.max_length')
  min_length: int = option(0, 'tokens before the end token is allowed')
  beam_size: int = option(4, "for 'beam' only")
  n_best: int = option(1, "hypotheses of an example; for 'sample' the number of draws")
  length_penalty: float = option(
    0.6, 'alpha of Wu et al. (2016), equation 14; 0 ranks by log-probability alone'
  )
  temperature: float = option(1.0, "for 'sample' only, before top_k and top_p")
  top_k: int = option(0, "for 'sample' only: the likeliest tokens to draw from; 0 = all")
  top_p: float = option(
    1.0, "for 'sample' only: mass of the nucleus to draw from (Holtzman et al. 2020)"
  )
  ctc_weight: float = option(0.0, 'of the CTC branch of a joint head; the decoder has the rest')
  language_model: str = option('', 'run folder of a language model with the same tokenizer')
  language_model_weight: float = option(0.0, 'of its log-probabilities')
  ngram: int = option(0, 'order of an n-gram model of the training targets: 2, 3 or 4; 0 = none')
  ngram_weight: float = option(0.0, 'of its log-probabilities')


@dataclasses.dataclass
class Parallel:
  """How a step is divided among devices (mmlm/parallel)."""

  strategy: str = option(
    'auto',
    'jit (one device), pmap (all devices, each with all parameters), mesh (divided parameters); '
    'auto = pmap where there are several devices',
  )
  mesh: str = option(
    'data=-1', 'sizes of the axes data, fsdp and tensor of a mesh; -1 = all devices that remain'
  )
  rules: tuple = option(
    ('transformer',),
    'for a mesh: names of sets in parallel/rules.py, and before them (regex, axis of each of the '
    'last dimensions)',
  )
  sequence: bool = option(
    False,
    'for a mesh: divide the activations between Transformer blocks in time, over the axis tensor',
  )


@dataclasses.dataclass
class Config:
  """A whole experiment. Sections and keys marked `resumable` may change when a run is continued."""

  name: str = option(
    '',
    'the file that the config was read from, with its argument',
    resumable=True,
    outside_program=True,
  )
  card: str = option('', 'docstring of that file', resumable=True, outside_program=True)
  task: str = option('captioning', 'a name in mmlm.tasks.TASKS')
  seed: int = option(0, 'of initial parameters, order of the data, dropout')
  data: Data = section(Data)
  tokenizer: Tokenizer = section(Tokenizer)
  model: Model = section(Model)
  optimizer: Optimizer = section(Optimizer)
  train: Train = section(Train)
  watch: Watch = section(Watch, resumable=True)
  evaluate: Evaluate = section(Evaluate, resumable=True)
  decoding: Decoding = section(Decoding)
  parallel: Parallel = section(Parallel, resumable=True)


def default_config() -> ConfigDict:
  """Returns every key with its default, as a locked ConfigDict."""
  return ConfigDict(dataclasses.asdict(Config())).lock()
