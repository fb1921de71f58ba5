"""German captioning: the photos of Multi30k that are also in Flickr8k, with five German descriptions each, written independently.

  ./launch.sh prepare multi30k/descriptions --source FOLDER
  ./launch.sh train configs/captioning/multi30k_german.py --workdir runs/german

`:language=en` takes the five English descriptions of the same photos.
"""

from configs.captioning.flickr8k import recipe
from configs.smoke import smoke
from mmlm.config import default_config, parse_arg


def get_config(arg=''):
  args = parse_arg(arg, smoke=False, language='de')
  config = recipe(default_config())
  config.data.name = 'multi30k/descriptions'
  config.data.fields = {'id': 'id', 'image': 'image', 'targets': args.language}
  config.data.splits = {'train': 'train', 'valid': 'valid', 'test': ('test_2016',)}
  return smoke(config) if args.smoke else config
