"""Captioning of your own pictures: JSON lines with `id`, `image` (a path relative to the file) and `target`.

  ./launch.sh train configs/captioning/manifest.py:train=my/train.jsonl,valid=my/valid.jsonl --workdir runs/mine

The model is that of flickr8k.py: about 6,000 pictures train in an hour on 2 CPU cores. `test=` names a manifest for `evaluate`;
without it the validation set is scored.
"""

from configs.captioning.flickr8k import recipe
from configs.smoke import smoke
from mmlm.config import default_config, parse_arg


def get_config(arg=''):
  args = parse_arg(arg, smoke=False, train='train.jsonl', valid='valid.jsonl', test='')
  config = recipe(default_config())
  config.data.name = 'manifest'
  config.data.splits = {
    'train': args.train,
    'valid': args.valid,
    'test': (args.test or args.valid,),
  }
  return smoke(config) if args.smoke else config
