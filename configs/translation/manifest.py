r"""Translation of your own texts with pictures: JSON lines with `id`, `text`, `target` and `image`.

  ./launch.sh train \
    configs/translation/manifest.py:train=my/train.jsonl,valid=my/valid.jsonl,source=en,target=de \
    --workdir runs/mine
  ./launch.sh ablate runs/mine

Data: `image` is a path relative to the manifest. `test=` names a manifest for `evaluate`; without
it the validation set is scored.
The model is that of parallel.py with a frozen image encoder; `:fusion=` is concatenation, gated,
selective, bottleneck or resampler; `:modalities=text` uses the text alone.
"""

from ml_collections import ConfigDict

from configs.smoke import smoke
from configs.translation.parallel import recipe
from mmlm.config import chosen, default_config, parse_arg


def get_config(arg: str = '') -> ConfigDict:
  args = parse_arg(
    arg,
    smoke=False,
    train='train.jsonl',
    valid='valid.jsonl',
    test='',
    source='en',
    target='de',
    moses=True,
    fusion='gated',
    modalities='text+image',
  )
  config = recipe(default_config(), args.source, args.target, args.moses)
  config.data.name = 'manifest'
  config.data.splits = {
    'train': args.train,
    'valid': args.valid,
    'test': (args.test or args.valid,),
  }
  config.data.train_ops = ('decode', 'resize(224)', 'flip', 'normalize(0.498039, 0.501961)')
  config.data.eval_ops = ('decode', 'resize(224)', 'normalize(0.498039, 0.501961)')
  image = {'name': 'efficientnet_lite0', 'grid_dropout': 0.2}
  encoders = {'text': config.model.encoders.text, 'image': image}
  config.model.encoders = chosen(args.modalities, encoders)
  config.model.fusion = {'name': args.fusion}
  if args.smoke:
    return smoke(config)
  return config
