"""Generated keypad tones in noise to the words of their digits, by a small Conformer.

  ./launch.sh train configs/speech/keypad_tones.py --workdir runs/tones
  ./launch.sh evaluate runs/tones

Data: generated offline.
`:head=` is ctc, joint, joint_recurrent, transformer_decoder or recurrent_decoder; `:encoder=` is
conformer, audio_transformer or audio_recurrent.
"""

from typing import Any

from ml_collections import ConfigDict

from configs.smoke import smoke
from mmlm.config import default_config, parse_arg


def recipe(config: ConfigDict, encoder: dict, head: str = 'joint', **options: Any) -> ConfigDict:
  """Sets what the experiments on speech share, with an encoder and options of the head."""
  config.task = 'recognition'
  config.tokenizer = {
    'kind': 'char',
    'source': '',
    'vocab_size': 200,
    'lowercase': True,
    'min_frequency': 1,
  }
  config.model.encoders = {'audio': encoder}
  if head in ('joint', 'transformer_decoder'):
    options = {'positions': 'sinusoidal'} | options
  config.model.head = {'name': head} | options
  config.train.monitor = 'cer'
  config.evaluate.shuffled = False
  config.decoding.beam_size = 8
  config.decoding.length_penalty = 0.0
  if head.startswith('joint'):
    config.decoding.ctc_weight = 0.3
  return config


def get_config(arg: str = '') -> ConfigDict:
  args = parse_arg(arg, smoke=False, head='joint', encoder='conformer')
  encoder = {
    'name': args.encoder,
    'width': 40,
    'layers': 2,
    'channels': 16,
    'subsampling': 2,
  }
  config = recipe(default_config(), encoder, args.head)
  config.data.name = 'keypad_tones/full'
  config.data.train_ops = config.data.eval_ops = (
    'decode_sound(16000)',
    'log_mel(40)',
    'standardize',
  )
  config.data.max_length = 320
  config.data.buckets = (100, 140, 180, 220, 320)
  config.tokenizer.kind = 'word'
  config.model.dim = 96
  config.optimizer.learning_rate = 2e-3
  config.optimizer.warmup = '100 steps'
  config.train.duration = '6 epochs'
  config.train.batch_size = 32
  config.train.monitor = 'wer'
  config.decoding.max_length = 10
  if args.smoke:
    return smoke(config)
  return config
