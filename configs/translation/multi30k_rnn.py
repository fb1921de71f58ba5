"""Multi30k by a bidirectional GRU and an LSTM decoder with input feeding (Luong et al. 2015).

  ./launch.sh train configs/translation/multi30k_rnn.py --workdir runs/rnn

Data and arguments are those of multi30k.py; `:cell=lstm` changes the encoder.
"""

from ml_collections import ConfigDict

from configs.smoke import smoke
from configs.translation.multi30k import recipe
from mmlm.config import default_config, parse_arg


def get_config(arg: str = '') -> ConfigDict:
  args = parse_arg(arg, smoke=False, source='en', target='de', cell='gru')
  config = recipe(default_config(), args.source, args.target)
  config.model.dim = 256
  config.model.encoders = {'text': {'name': 'text_recurrent', 'layers': 1, 'cell': args.cell}}
  config.model.head = {'name': 'recurrent_decoder', 'layers': 1, 'cell': 'lstm'}
  config.optimizer.learning_rate = 1e-3
  config.optimizer.warmup = '500 steps'
  if args.smoke:
    return smoke(config)
  return config
