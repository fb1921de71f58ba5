"""Mboshi speech (4.46 hours) to Mboshi text or to French, and Mboshi text to French, on the corpus's own split.

  ./launch.sh prepare mboshi --source FOLDER
  ./launch.sh train configs/speech/mboshi.py:task=recognition --workdir runs/mboshi
  ./launch.sh train configs/speech/mboshi.py:task=translation --workdir runs/direct       # sound to French
  ./launch.sh train configs/speech/mboshi.py:task=multitask --workdir runs/multitask      # the same, CTC learns the Mboshi text beside
  ./launch.sh train configs/speech/mboshi.py:task=multitask,start=runs/mboshi --workdir runs/started   # from the encoder of the recognition
  ./launch.sh train configs/speech/mboshi.py:task=text --workdir runs/text                # Mboshi text to French

The cascade translates what was recognised:

  ./launch.sh evaluate runs/mboshi
  ./launch.sh evaluate runs/text --text_from runs/mboshi/predictions/test-STEP.jsonl

All have bidirectional LSTMs and LSTM decoders with attention, or CTC, of which a core trains one in an hour; for sound `:encoder=conformer` is
larger and has Transformer decoders.
"""

from configs.smoke import smoke
from configs.speech.keypad_tones import recipe
from mmlm.config import default_config, parse_arg
from mmlm.utils.choices import one_of

FIELDS = {
  'recognition': {'targets': 'mboshi'},
  'translation': {'targets': 'french'},
  'multitask': {'targets': 'french', 'transcript': 'mboshi'},
  'text': {'targets': 'french', 'text': 'mboshi'},
}
HEADS = {
  'recurrent': {
    'recognition': 'ctc',
    'translation': 'recurrent_decoder',
    'multitask': 'joint_recurrent',
  },
  'transformer': {
    'recognition': 'joint',
    'translation': 'transformer_decoder',
    'multitask': 'joint',
  },
}


def get_config(arg=''):
  args = parse_arg(arg, smoke=False, task='recognition', encoder='audio_recurrent', start='')
  one_of('task', args.task, FIELDS)
  config = default_config()
  if args.task == 'text':
    config = text_to_text(config)
  else:
    config = sound_to_text(config, args.task, args.encoder)
  config.data.name = 'mboshi'
  config.data.fields = {'id': 'id', **FIELDS[args.task]} | (
    {} if args.task == 'text' else {'audio': 'audio', 'speaker': 'speaker'}
  )
  config.model.dim = 144
  config.model.dropout = 0.2
  config.optimizer.warmup = '300 steps'
  config.train.duration = '20 epochs'
  config.train.eval_every = '2 epochs'
  config.train.batch_size = 32
  config.train.ema_decay = 0.998
  config.decoding.max_length = 160
  config.evaluate.shuffled = False
  if args.start:
    config.train.start_from = args.start
    config.train.start_rules = (('encoders_audio/.*', True), ('.*', False))
    config.train.duration = '12 epochs'
  if args.task != 'recognition':
    config.train.monitor = 'bleu'
    config.evaluate.metrics = ('bleu', 'chrf')
    config.decoding.length_penalty = 1.0
  return smoke(config) if args.smoke else config


def sound_to_text(config, task, encoder):
  heads = HEADS['recurrent' if encoder == 'audio_recurrent' else 'transformer']
  if task == 'multitask':
    options = {'ctc_labels': 'transcript'}
  else:
    options = {}
  config = recipe(config, {'name': encoder, 'width': 80}, heads[task], **options)
  if task == 'recognition':
    config.task = 'recognition'
  else:
    config.task = 'speech_translation'
  config.data.train_ops = (
    'decode_sound(16000)',
    'speed',
    'log_mel(80)',
    'standardize',
    'spec_augment(5, 2, 15, 2, 40)',
  )
  config.data.eval_ops = ('decode_sound(16000)', 'log_mel(80)', 'standardize')
  config.data.max_length = 1100
  config.data.buckets = (240, 280, 320, 380, 460, 600, 1100)
  if task == 'recognition':
    config.decoding.ngram = 4
    config.decoding.ngram_weight = 0.3
  else:
    config.decoding.ctc_weight = 0.0  # of multitask the branch writes Mboshi
  if encoder == 'audio_recurrent':
    config.optimizer.learning_rate = 2e-3
  else:
    config.optimizer.learning_rate = 5e-4
  return config


def text_to_text(config):
  config.task = 'translation'
  config.tokenizer = {
    'kind': 'char',
    'source': '',
    'vocab_size': 200,
    'lowercase': True,
    'min_frequency': 1,
  }
  config.data.max_length = 160
  config.data.buckets = (32, 48, 64, 96, 160)
  config.model.encoders = {'text': {'name': 'text_recurrent', 'layers': 3, 'cell': 'lstm'}}
  config.model.head = {'name': 'recurrent_decoder'}
  config.optimizer.learning_rate = 2e-3
  config.decoding.beam_size = 8
  return config
