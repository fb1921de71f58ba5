"""Captioning of generated pictures: a character in, its Unicode name out.

  ./launch.sh      the quick start: trains, evaluates on held-out typefaces and characters, reports

Data: 28,539 pictures of 32 x 32 pixels, generated offline. The sizes of the model were chosen on
the validation typeface. Time and scores: experiments/README.md.
"""

from ml_collections import ConfigDict

from configs.smoke import smoke
from mmlm.config import default_config, parse_arg


def get_config(arg: str = '') -> ConfigDict:
  args = parse_arg(arg, smoke=False)
  config = default_config()
  config.data.name = 'unicode_pictures'
  config.data.splits = {
    'train': 'train',
    'valid': 'valid',
    'test': ('test_faces', 'test_characters'),
  }
  config.data.train_ops = ('decode("L")', 'random_crop(32, 1)', 'normalize("half")')
  config.data.eval_ops = ('decode("L")', 'normalize("half")')
  config.data.max_length = 14
  config.data.buckets = (7, 14)
  config.tokenizer.vocab_size = 1500
  config.model.dim = 128
  config.model.dropout = 0.0  # five epochs do not overfit
  config.model.encoders = {'image': {'name': 'vit', 'stem': (48, 96, 192), 'patch': 1, 'layers': 1}}
  config.model.head = {'name': 'transformer_decoder', 'layers': 2}
  config.optimizer.learning_rate = 2e-3
  config.optimizer.warmup = '200 steps'
  config.train.duration = '5 epochs'
  config.train.label_smoothing = 0.0
  config.train.batch_size = 64
  config.train.ema_decay = 0.995
  config.train.log_every = '100 steps'
  config.train.eval_every = '1 epochs'
  config.train.monitor = 'exact_match'
  config.evaluate.batch_size = 128
  config.evaluate.metrics = ('exact_match', 'word_f1')
  if args.smoke:
    return smoke(config)
  return config
