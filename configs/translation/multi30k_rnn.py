"""A recurrent network with attention on Multi30k: bidirectional GRU encoder, LSTM decoder with input feeding (Luong et al. 2015).

./launch.sh train configs/translation/multi30k_rnn.py --workdir runs/rnn
"""

from configs.smoke import smoke
from configs.translation.multi30k import recipe
from mmlm.config import default_config, parse_arg


def get_config(arg=''):
  args = parse_arg(arg, smoke=False, source='en', target='de', cell='gru')
  config = recipe(default_config(), args.source, args.target)
  config.model.dim = 256
  config.model.encoders = {'text': {'name': 'text_recurrent', 'layers': 1, 'cell': args.cell}}
  config.model.head = {'name': 'recurrent_decoder', 'layers': 1, 'cell': 'lstm'}
  config.optimizer.learning_rate = 1e-3
  config.optimizer.warmup = '500 steps'
  return smoke(config) if args.smoke else config
