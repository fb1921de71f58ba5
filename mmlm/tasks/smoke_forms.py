"""Small forms of configs: a generated data set, small parts and six steps.

Tasks return them from `Task.smoke`. Each function changes a config and returns it.
"""

from ml_collections import ConfigDict

# The modalities of the set three_modalities that replace those of a config.
REPLACEMENTS = {'text': 'text', 'audio': 'audio', 'image': 'image', 'video': 'image'}
BERT_SIZES = {'width': 24, 'layers': 1, 'heads': 2, 'ffn_dim': 24, 'max_positions': 16}


def few_steps(config: ConfigDict) -> ConfigDict:
  """Sets the durations and sizes of all small forms."""
  config.data.max_valid_examples = 16
  config.train.duration = '6 steps'
  config.train.log_every = '2 steps'
  config.train.eval_every = '3 steps'
  config.train.batch_size = 16
  config.train.keep_latest = 1
  config.evaluate.batch_size = 16
  config.evaluate.average = 1
  config.evaluate.bootstrap_samples = 20
  return config


def text_from_pictures_or_text(config: ConfigDict) -> ConfigDict:
  """Reads numerals if the model has a text encoder, else pictures of characters."""
  test_split = 'test_faces'
  config.data.name = 'unicode_pictures/tiny'
  if 'text' in config.model.encoders:
    test_split = 'test'
    config.data.name = 'numerals/tiny'
  config.data.fields = {}
  config.data.splits = {'train': 'train', 'valid': 'valid', 'test': (test_split,)}
  config.evaluate.reference_words = {}
  config.model.dim = 32
  for part in (*config.model.encoders.values(), config.model.head):
    part.unlock()['layers'] = 1
  config.train.batch_tokens = config.train.batch_tokens and 400
  config.decoding.max_length = 12
  return few_steps(config)


def text_from_sounds(config: ConfigDict) -> ConfigDict:
  """Reads generated keypad tones; the targets are their digits.

  If the CTC branch learns a transcript, that is the digits and the targets are their words.
  """
  config.data.name = 'keypad_tones/tiny'
  config.data.fields = {'id': 'id', 'audio': 'audio', 'targets': 'digits'}
  if config.model.head.get('ctc_labels') == 'transcript':
    config.data.fields = {
      'id': 'id',
      'audio': 'audio',
      'targets': 'words',
      'transcript': 'digits',
    }
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
  config.tokenizer = _small_tokenizer('char', vocab_size=100)
  config.model.dim = 32
  audio = config.model.encoders.audio.unlock()
  audio.update({'width': 20, 'planes': 1, 'channels': 4, 'layers': 1})
  if audio.name == 'conformer':
    audio['kernel'] = 3
  if config.model.head.name != 'ctc':
    config.model.head.unlock()['layers'] = 1
  config.train.batch_tokens = 0
  config.decoding.max_length = 12
  config.decoding.beam_size = 2
  return few_steps(config)


def plain_text(config: ConfigDict) -> ConfigDict:
  """Reads the names of characters."""
  config.data.name = 'unicode_pictures/tiny'
  config.data.fields = {'id': 'id', 'targets': 'caption'}
  config.data.splits = {'train': 'train', 'valid': 'valid', 'test': ('test_faces',)}
  return _small_language_model(config, config.model.head)


def masked_text(config: ConfigDict) -> ConfigDict:
  """Reads English numerals."""
  config.data.name = 'numerals/tiny'
  config.data.fields = {'id': 'id', 'text': 'en'}
  config.data.splits = {'train': 'train', 'valid': 'valid', 'test': ('test',)}
  return _small_language_model(config, config.model.encoders.text)


def _small_language_model(config: ConfigDict, part: ConfigDict) -> ConfigDict:
  """Sets small sizes of a language model, whose tokens `part` reads."""
  config.data.max_length = 32
  config.data.buckets = ()
  config.tokenizer.vocab_size = 400
  config.tokenizer.min_frequency = 1
  if config.tokenizer.kind in ('wordpiece', 'gpt2', 'run'):
    config.tokenizer.kind = 'bpe'
    config.tokenizer.source = ''
  config.model.dim = 32
  part.unlock()['layers'] = 1
  for name in ('width', 'ffn_dim', 'max_positions', 'hidden_dim'):
    if name in part:
      part[name] = 32
  if 'heads' in part:
    part['heads'] = 2
  if 'pretrained' in part:
    part['pretrained'] = ''
  config.train.batch_tokens = 0
  config.evaluate.stride = 0
  return few_steps(config)


def labels(config: ConfigDict, label_field: str) -> ConfigDict:
  """Reads generated sentences, faces and melodies.

  Args:
    label_field: the field of the generated set that is learned.
  """
  modalities = [REPLACEMENTS[modality] for modality in config.model.encoders]
  config.data.name = 'three_modalities/tiny'
  config.data.fields = {'id': 'id', 'label': label_field} | dict(zip(modalities, modalities))
  config.data.splits = {'train': 'train', 'valid': 'valid', 'test': ('test',)}
  config.data.train_ops = ("decode('L')", "normalize('half')")
  config.data.eval_ops = config.data.train_ops
  config.data.max_length = 16
  config.data.buckets = ()
  tokenizer_kind = 'word' if 'text' in modalities else 'none'
  config.tokenizer = _small_tokenizer(tokenizer_kind, vocab_size=200)
  encoders = {
    'text': _small_text_encoder(config.model.encoders.get('text', {})),
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
  return few_steps(config)


def _small_text_encoder(options: ConfigDict | dict) -> dict:
  """Returns a small text encoder; features of a text are replaced by a Transformer over tokens."""
  if options.get('name') in (None, 'features', 'feature_recurrent'):
    return {'name': 'text_transformer', 'layers': 1}
  small = {'name': options['name']}
  if 'windows' in options:
    small['windows'] = options['windows']
  if small['name'] == 'bert':
    small |= BERT_SIZES
  return small


def _small_tokenizer(kind: str, vocab_size: int) -> dict:
  return {
    'kind': kind,
    'source': '',
    'vocab_size': vocab_size,
    'lowercase': True,
    'min_frequency': 1,
  }
