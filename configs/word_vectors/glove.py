"""Word vectors of any text by GloVe (Pennington et al. 2014).

  ./launch.sh train configs/word_vectors/glove.py:text=brown.txt --workdir runs/glove
  ./launch.sh evaluate runs/glove
  ./launch.sh export runs/glove --format glove --output vectors.txt

Data: as in skipgram.py. Pairs of words up to 10 places apart are counted on both sides; an epoch
goes through all pairs that occur.
The settings are those of the authors' code for small texts (x_max 10, AdaGrad at 0.05). A vector is
the sum of both tables.
"""

from ml_collections import ConfigDict

from configs.smoke import smoke
from configs.word_vectors.skipgram import recipe
from mmlm.config import default_config, parse_arg


def get_config(arg: str = '') -> ConfigDict:
  args = parse_arg(arg, smoke=False, text='', width=100, epochs=15)
  config = recipe(default_config(), args, __file__)
  config.model.head = {'name': 'glove', 'x_max': 10.0}
  config.optimizer.name = 'adagrad'
  config.optimizer.learning_rate = 0.05
  config.optimizer.schedule = 'constant'
  config.train.batch_size = 65536
  config.train.eval_every = '5 epochs'
  if args.smoke:
    return smoke(config)
  return config
