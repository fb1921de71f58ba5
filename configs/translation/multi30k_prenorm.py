"""Multi30k by a small pre-norm Transformer: 3 + 3 layers, D 256, SiLU gates, rotary positions.

  ./launch.sh train configs/translation/multi30k_prenorm.py --workdir runs/prenorm

Data and arguments are those of multi30k.py.
"""

from ml_collections import ConfigDict

from configs.smoke import smoke
from configs.translation.multi30k import recipe
from mmlm.config import default_config, parse_arg


def get_config(arg: str = '') -> ConfigDict:
  args = parse_arg(arg, smoke=False, source='en', target='de')
  config = recipe(default_config(), args.source, args.target)
  block = {'layers': 3, 'heads': 4, 'ffn_dim': 512, 'activation': 'silu', 'positions': 'rotary'}
  config.model.dim = 256
  config.model.encoders = {'text': {'name': 'text_transformer', **block}}
  config.model.head = {'name': 'transformer_decoder', 'gated': True, **block}
  config.optimizer.learning_rate = 2e-3
  config.optimizer.warmup = '2000 steps'
  if args.smoke:
    return smoke(config)
  return config
