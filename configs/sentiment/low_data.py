r"""A quarter of SST-2: fine-tuning of an encoder that was trained as a masked language model.

  ./launch.sh prepare sst2 --source FOLDER
  ./launch.sh train configs/language_model/masked.py:set=sst2,field=text,valid=dev \
    --workdir runs/masked
  ./launch.sh train configs/sentiment/low_data.py:start=runs/masked --workdir runs/quarter_masked
  ./launch.sh train configs/sentiment/low_data.py:like=runs/masked --workdir runs/quarter_random
  ./launch.sh compare runs/quarter_masked runs/quarter_random       # after `evaluate` of both

Data: the masked model reads all sentences of the training split without their labels; `percent` is
the share of sentences with labels that is trained on.
`like=` takes the tokenizer of a run alone and starts from random parameters.
Scores: experiments/README.md.
"""

from ml_collections import ConfigDict

from configs.smoke import smoke
from mmlm.config import default_config, parse_arg


def get_config(arg: str = '') -> ConfigDict:
  args = parse_arg(arg, smoke=False, start='', like='', percent=25, layers=4, dim=256)
  config = default_config()
  config.task = 'classification'
  config.data.name = 'sst2'
  config.data.splits = {
    'train': f'train[:{args.percent}%]',
    'valid': 'dev',
    'test': ('test', 'dev'),
  }
  config.data.max_length = 64
  config.data.buckets = (8, 12, 16, 24, 32, 48, 64)
  run = args.start or args.like
  config.tokenizer = {
    'kind': 'run' if run else 'bpe',
    'source': run,
    'vocab_size': 8000,
    'lowercase': True,
    'min_frequency': 2,
    'mask': True,
  }
  config.model.dim = args.dim
  config.model.encoders = {
    'text': {
      'name': 'bert',
      'width': args.dim,
      'layers': args.layers,
      'heads': args.dim // 64 or 1,
      'ffn_dim': 4 * args.dim,
      'max_positions': 64,
    }
  }
  config.model.head = {'name': 'classifier', 'pool': 'mean', 'classes': ('negative', 'positive')}
  config.optimizer.learning_rate = 3e-4
  config.optimizer.schedule = 'linear'
  config.optimizer.warmup = '200 steps'
  if args.start:
    config.train.start_from = args.start
    config.train.start_rules = (('head/.*', False), ('.*', True))
  config.train.duration = '5 epochs'
  config.train.batch_size = 32
  config.train.label_smoothing = 0.0
  config.train.eval_every = '200 steps'
  config.train.monitor = 'accuracy'
  config.evaluate.shuffled = False
  if args.smoke:
    return smoke(config)
  return config
