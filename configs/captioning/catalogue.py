"""Captioning on any set of the TFDS catalogue that lies prepared as array_record under data.dir.

  ./launch.sh train configs/captioning/catalogue.py:name=coco_captions/2014,id=image/filename,targets=captions/text --workdir runs/coco

`id`, `image` and `targets` are paths of the set's features; `train`, `valid` and `test` are its splits, in TFDS's syntax.
"""

from configs.captioning.flickr8k import recipe
from configs.smoke import smoke
from mmlm.config import default_config, parse_arg


def get_config(arg=''):
  args = parse_arg(
    arg,
    smoke=False,
    name='coco_captions/2014',
    id='',
    image='image',
    targets='captions/text',
    train='train',
    valid='val',
    test='test',
  )
  config = recipe(default_config())
  config.data.name = args.name
  config.data.fields = {'image': args.image, 'targets': args.targets} | (
    {'id': args.id} if args.id else {}
  )
  config.data.splits = {'train': args.train, 'valid': args.valid, 'test': (args.test,)}
  return smoke(config) if args.smoke else config
