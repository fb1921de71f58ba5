"""AN4: characters from 13 cepstra by a bidirectional LSTM with CTC.

  ./launch.sh prepare an4 --source FOLDER
  ./launch.sh train configs/speech/an4.py --workdir runs/an4
  ./launch.sh evaluate runs/an4

Data: 948 utterances train, 130 test; their differences in time are further planes of the input.
Search uses a 4-gram model of the training transcripts; its weight and the width of the model were
chosen on the validation part.
`:encoder=conformer` has a lower learning rate (at 2e-3 it hardly learned); `:head=` is as in
keypad_tones.py; `:tokenizer=word` writes words.
Number: published are 7.4 (ESPnet) and 5.95 (Kaldi) % WER from the waveforms; ours:
experiments/README.md.
"""

from ml_collections import ConfigDict

from configs.smoke import smoke
from configs.speech.keypad_tones import recipe
from mmlm.config import default_config, parse_arg


def get_config(arg: str = '') -> ConfigDict:
  args = parse_arg(arg, smoke=False, head='ctc', encoder='audio_recurrent', tokenizer='char')
  encoder = {'name': args.encoder, 'width': 39, 'planes': 3}
  if args.encoder != 'audio_recurrent':
    encoder['layers'] = 4
  config = recipe(default_config(), encoder, args.head)
  config.data.name = 'an4'
  config.data.train_ops = (
    'stretch(0.9, 1.1)',
    'standardize',
    'spec_augment(5, 2, 3, 2, 15)',
    'deltas(2)',
  )
  config.data.eval_ops = ('standardize', 'deltas(2)')
  config.data.max_length = 720
  config.data.buckets = (120, 180, 240, 300, 360, 480, 720)
  config.tokenizer.kind = args.tokenizer
  config.model.dim = 256
  config.model.dropout = 0.3
  if args.encoder == 'conformer':
    config.optimizer.learning_rate = 5e-4
  else:
    config.optimizer.learning_rate = 2e-3
  config.optimizer.warmup = '600 steps'
  config.train.duration = '50 epochs'
  config.train.eval_every = '2 epochs'
  config.train.batch_size = 16
  config.train.ema_decay = 0.999
  config.train.monitor = 'wer'
  config.decoding.max_length = 64
  config.decoding.ngram = 4
  config.decoding.ngram_weight = 0.3
  if args.smoke:
    return smoke(config)
  return config
