"""Small forms of configs; they move onto the tasks (mmlm/tasks) with `Task.smoke`."""

from ml_collections import ConfigDict


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
