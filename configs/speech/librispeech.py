"""LibriSpeech: subwords of read English by a Conformer with CTC and a decoder, for an accelerator.

  ./launch.sh prepare librispeech --source FOLDER
  ./launch.sh train configs/speech/librispeech.py --workdir runs/librispeech
  ./launch.sh evaluate runs/librispeech --splits test_clean,test_other

Data: FOLDER holds train-clean-100 and so on as the archives have them; `:train=train_clean_360` and
`:valid=dev_other` name other parts.
"""

from ml_collections import ConfigDict

from configs.smoke import smoke
from configs.speech.keypad_tones import recipe
from mmlm.config import default_config, parse_arg

# The medium size of Gulati et al. (2020), table 1.
ENCODER = {
  'name': 'conformer',
  'width': 80,
  'layers': 16,
  'kernel': 31,
  'channels': 128,
  'remat': True,
}


def get_config(arg: str = '') -> ConfigDict:
  args = parse_arg(arg, smoke=False, train='train_clean_100', valid='dev_clean', test='test_clean')
  config = large(recipe(default_config(), ENCODER, layers=6))
  config.data.name = 'librispeech'
  config.data.splits = {'train': args.train, 'valid': args.valid, 'test': (args.test,)}
  config.train.monitor = 'wer'
  if args.smoke:
    return smoke(config)
  return config


def large(config: ConfigDict) -> ConfigDict:
  """Sets features, tokenizer and training for corpora of a hundred hours and more."""
  config.data.train_ops = (
    'decode_sound(16000)',
    'speed',
    'fbank(80)',
    'standardize',
    'spec_augment(5, 2, 27, 2, 40)',
  )
  config.data.eval_ops = ('decode_sound(16000)', 'fbank(80)', 'standardize')
  config.data.max_length = 2800
  config.data.buckets = (400, 800, 1200, 1400, 1600, 1800, 2800)
  config.data.max_valid_examples = 500
  config.tokenizer = {
    'kind': 'unigram',
    'source': '',
    'vocab_size': 1000,
    'lowercase': True,
    'min_frequency': 1,
  }
  config.model.dim = 256
  config.model.dtype = 'bfloat16'
  config.optimizer.learning_rate = 1e-3
  config.optimizer.warmup = '10000 steps'
  config.optimizer.schedule = 'inverse_sqrt'
  config.train.duration = '60 epochs'
  config.train.batch_tokens = 32000
  config.train.batch_size = 8
  config.train.ema_decay = 0.9999
  config.decoding.max_length = 200
  return config
