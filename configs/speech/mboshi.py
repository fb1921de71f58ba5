"""Mboshi speech (4.46 hours) to Mboshi text or to French, and Mboshi text to French.

  ./launch.sh prepare mboshi --source FOLDER
  ./launch.sh train configs/speech/mboshi.py:task=recognition --workdir runs/mboshi
  ./launch.sh train configs/speech/mboshi.py:task=translation --workdir runs/direct
  ./launch.sh train configs/speech/mboshi.py:task=multitask --workdir runs/multitask
  ./launch.sh train configs/speech/mboshi.py:task=multitask,start=runs/mboshi --workdir runs/started
  ./launch.sh train configs/speech/mboshi.py:task=text --workdir runs/text

Data: the split of the corpus. `translation` is speech to French; in `multitask` CTC also learns the
Mboshi text; `start=` takes the encoder of a recognition run; `text` is Mboshi text to French.
A cascade: `./launch.sh evaluate runs/text --text_from runs/mboshi/predictions/test-STEP.jsonl`,
after `evaluate` of runs/mboshi.
All have bidirectional LSTMs with CTC, or LSTM decoders with attention; `:encoder=conformer` is
larger and has Transformer decoders.
Time: an hour each on one CPU core. Scores: experiments/README.md.
"""

from ml_collections import ConfigDict

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
RECURRENT_HEADS = {
  'recognition': 'ctc',
  'translation': 'recurrent_decoder',
  'multitask': 'joint_recurrent',
}
TRANSFORMER_HEADS = {
  'recognition': 'joint',
  'translation': 'transformer_decoder',
  'multitask': 'joint',
}


def get_config(arg: str = '') -> ConfigDict:
  args = parse_arg(arg, smoke=False, task='recognition', encoder='audio_recurrent', start='')
  one_of('task', args.task, FIELDS)
  config = default_config()
  if args.task == 'text':
    config = text_to_text(config)
  else:
    config = sound_to_text(config, args.task, args.encoder)
  config.data.name = 'mboshi'
  config.data.fields = {'id': 'id', **FIELDS[args.task]}
  if args.task != 'text':
    config.data.fields['audio'] = 'audio'
    config.data.fields['speaker'] = 'speaker'
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
  if args.smoke:
    return smoke(config)
  return config


def sound_to_text(config: ConfigDict, task: str, encoder: str) -> ConfigDict:
  heads = RECURRENT_HEADS if encoder == 'audio_recurrent' else TRANSFORMER_HEADS
  config = recipe(config, {'name': encoder, 'width': 80}, heads[task])
  if task == 'multitask':
    config.model.head.unlock()['ctc_labels'] = 'transcript'
  if task == 'recognition':
    config.decoding.ngram = 4
    config.decoding.ngram_weight = 0.3
  else:
    config.task = 'speech_translation'
    config.decoding.ctc_weight = 0.0  # in multitask CTC writes Mboshi
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
  if encoder == 'audio_recurrent':
    config.optimizer.learning_rate = 2e-3
  else:
    config.optimizer.learning_rate = 5e-4
  return config


def text_to_text(config: ConfigDict) -> ConfigDict:
  config.task = 'translation'
  config.tokenizer.kind = 'char'
  config.tokenizer.vocab_size = 200
  config.tokenizer.min_frequency = 1
  config.data.max_length = 160
  config.data.buckets = (32, 48, 64, 96, 160)
  config.model.encoders = {'text': {'name': 'text_recurrent', 'layers': 3, 'cell': 'lstm'}}
  config.model.head = {'name': 'recurrent_decoder'}
  config.optimizer.learning_rate = 2e-3
  config.decoding.beam_size = 8
  return config
