r"""Captioning on any data set of the TFDS catalogue, prepared as array_record below data.dir.

  ./launch.sh train configs/captioning/catalogue.py:name=coco_captions/2014,id=image/filename \
    --workdir runs/coco

Arguments: `id`, `image` and `targets` are paths of the set's features (`targets=captions/text`);
`train`, `valid` and `test` are its splits, in the syntax of TFDS. The model is that of flickr8k.py.
"""

from ml_collections import ConfigDict

from configs.captioning.flickr8k import recipe
from configs.smoke import smoke
from mmlm.config import default_config, parse_arg


def get_config(arg: str = '') -> ConfigDict:
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
  config.data.fields = {'image': args.image, 'targets': args.targets}
  if args.id:
    config.data.fields['id'] = args.id
  config.data.splits = {'train': args.train, 'valid': args.valid, 'test': (args.test,)}
  if args.smoke:
    return smoke(config)
  return config
