"""German captioning of the photos that Multi30k shares with Flickr8k.

  ./launch.sh prepare multi30k/descriptions --source FOLDER
  ./launch.sh train configs/captioning/multi30k_german.py --workdir runs/german

Data: five German descriptions a photo, written independently of the English ones.
`:language=en` trains on the five English descriptions. The model is that of flickr8k.py.
"""

from ml_collections import ConfigDict

from configs.captioning.flickr8k import recipe
from configs.smoke import smoke
from mmlm.config import default_config, parse_arg


def get_config(arg: str = '') -> ConfigDict:
  args = parse_arg(arg, smoke=False, language='de')
  config = recipe(default_config())
  config.data.name = 'multi30k/descriptions'
  config.data.fields = {'id': 'id', 'image': 'image', 'targets': args.language}
  config.data.splits = {'train': 'train', 'valid': 'valid', 'test': ('test_2016',)}
  if args.smoke:
    return smoke(config)
  return config
