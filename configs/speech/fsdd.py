"""Free Spoken Digit Dataset: the digit is written in characters, by a small Conformer.

  ./launch.sh prepare fsdd --source FOLDER
  ./launch.sh train configs/speech/fsdd.py --workdir runs/fsdd
  ./launch.sh evaluate runs/fsdd

Data: the official split, 3,000 recordings of six speakers. Features are not standardized by
recording: the mean of a word of a third of a second is its vowel.
CTC and a Transformer decoder; `:head=ctc` is CTC alone. `exact_match` is the accuracy.
Scores: experiments/README.md.
"""

from ml_collections import ConfigDict

from configs.smoke import smoke
from configs.speech.keypad_tones import recipe
from mmlm.config import default_config, parse_arg


def get_config(arg: str = '') -> ConfigDict:
  args = parse_arg(arg, smoke=False, head='joint', encoder='conformer')
  encoder = {
    'name': args.encoder,
    'width': 40,
    'layers': 3,
    'channels': 16,
    'subsampling': 2,
  }
  config = recipe(default_config(), encoder, args.head)
  config.data.name = 'fsdd'
  config.data.train_ops = (
    'decode_sound(16000)',
    'speed',
    'log_mel(40)',
    'spec_augment(2, 2, 8, 2, 10)',
  )
  config.data.eval_ops = ('decode_sound(16000)', 'log_mel(40)')
  config.data.max_length = 300
  config.data.buckets = (40, 60, 90, 300)
  config.model.dim = 96
  config.model.dropout = 0.2
  config.optimizer.learning_rate = 2e-3
  config.train.duration = '50 epochs'
  config.train.batch_size = 32
  config.train.ema_decay = 0.999
  config.train.monitor = 'wer'
  config.evaluate.metrics = ('exact_match', 'wer', 'cer')
  config.decoding.max_length = 8
  if args.smoke:
    return smoke(config)
  return config
