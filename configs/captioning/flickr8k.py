"""Flickr8k captioning: a frozen EfficientNet-Lite0 and a Transformer decoder.

  ./launch.sh prepare flickr8k --source FOLDER
  ./launch.sh train configs/captioning/flickr8k.py --workdir runs/flickr8k
  ./launch.sh evaluate runs/flickr8k

Data: the official split, five captions a photo; `:language=zh` trains on the Chinese captions.
Time: 33 minutes on 2 CPU cores, after 5 minutes for the image features (1.8 GB in data/features).
Number: test, one seed: BLEU-4 22.0, CIDEr-D 0.544; all scores: experiments/README.md.
"""

from ml_collections import ConfigDict

from configs.smoke import smoke
from mmlm.config import default_config, parse_arg


def recipe(config: ConfigDict) -> ConfigDict:
  """Sets what all data sets of photos with captions share."""
  config.data.train_ops = ('decode', 'resize(224)', 'flip', 'normalize(0.498039, 0.501961)')
  config.data.eval_ops = ('decode', 'resize(224)', 'normalize(0.498039, 0.501961)')
  config.data.max_length = 40
  config.data.buckets = (12, 16, 24, 40)
  config.tokenizer = {'kind': 'word', 'vocab_size': 5000, 'lowercase': True, 'min_frequency': 5}
  config.model.dim = 256
  config.model.dropout = 0.3
  config.model.encoders = {'image': {'name': 'efficientnet_lite0', 'grid_dropout': 0.2}}
  config.model.head = {'name': 'transformer_decoder', 'layers': 3, 'heads': 8}
  config.optimizer.learning_rate = 5e-4
  config.optimizer.warmup = '1000 steps'
  config.train.duration = '12 epochs'
  config.train.batch_size = 64
  config.train.ema_decay = 0.999
  config.train.monitor = 'cider_d'
  # Chosen on the validation split after training: the averaged parameters at the end, and a
  # penalty that allows longer captions.
  config.evaluate.checkpoint = 'latest'
  config.decoding.length_penalty = 1.0
  return config


def get_config(arg: str = '') -> ConfigDict:
  args = parse_arg(arg, smoke=False, language='en')
  config = recipe(default_config())
  config.data.name = 'flickr8k'
  config.data.fields = {'id': 'id', 'image': 'image', 'targets': f'captions_{args.language}'}
  config.data.splits = {'train': 'train', 'valid': 'dev', 'test': ('test',)}
  if args.smoke:
    return smoke(config)
  return config
