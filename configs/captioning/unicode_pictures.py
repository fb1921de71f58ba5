"""Captioning of generated pictures: a character in, its Unicode name out. The quick start of `./launch.sh`."""

from mmlm.config import default_config, parse_arg, smoke


def get_config(arg=''):
  args = parse_arg(arg, smoke=False)
  config = default_config()
  config.data.name = 'unicode_pictures'
  config.data.splits = {'train': 'train', 'valid': 'valid', 'test': ('test_faces', 'test_characters')}
  config.data.train_ops = ('decode("L")', 'random_crop(32, 2)', 'normalize("half")')
  config.data.eval_ops = ('decode("L")', 'normalize("half")')
  config.data.max_length = 14
  config.data.buckets = (8, 14)
  config.tokenizer.vocab_size = 1500
  config.model.dim = 128
  config.model.encoders = {'image': {'name': 'vit', 'stem': (32, 64), 'patch': 2, 'layers': 3}}
  config.model.head = {'name': 'transformer_decoder', 'layers': 2}
  config.optimizer.learning_rate = 2e-3
  config.optimizer.warmup = '300 steps'
  config.train.duration = '8 epochs'
  config.train.batch_size = 128
  config.train.ema_decay = 0.998
  config.train.log_every = '100 steps'
  config.train.eval_every = '2 epochs'
  config.train.monitor = 'exact_match'
  config.evaluate.batch_size = 128
  config.evaluate.metrics = ('exact_match', 'word_f1')
  return smoke(config) if args.smoke else config
