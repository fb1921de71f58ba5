r"""Captioning of your own pictures: JSON lines with `id`, `image` and `target`.

  ./launch.sh train configs/captioning/manifest.py:train=my/train.jsonl,valid=my/valid.jsonl \
    --workdir runs/mine

Data: `image` is a path relative to the manifest. `test=` names a manifest for `evaluate`; without
it the validation set is scored.
Time: about an hour on 2 CPU cores for 6,000 pictures. The model is that of flickr8k.py.
"""

from ml_collections import ConfigDict

from configs.captioning.flickr8k import recipe
from configs.smoke import smoke
from mmlm.config import default_config, parse_arg


def get_config(arg: str = '') -> ConfigDict:
  args = parse_arg(arg, smoke=False, train='train.jsonl', valid='valid.jsonl', test='')
  config = recipe(default_config())
  config.data.name = 'manifest'
  config.data.splits = {
    'train': args.train,
    'valid': args.valid,
    'test': (args.test or args.valid,),
  }
  if args.smoke:
    return smoke(config)
  return config
