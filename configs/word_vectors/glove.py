"""Word vectors by GloVe (Pennington et al. 2014) of any text.

  ./launch.sh train configs/word_vectors/glove.py:text=brown.txt --workdir runs/glove
  ./launch.sh evaluate runs/glove
  ./launch.sh export runs/glove --format glove --output vectors.txt

The text is that of skipgram.py. Pairs of words up to 10 places apart are counted once, on both sides; an epoch goes through all pairs that occur.
Settings are those of the code of its authors for small texts: x_max 10, rate 0.05 by AdaGrad; the vectors are the sums of both tables.
"""

from configs.word_vectors.skipgram import recipe
from mmlm.config import default_config, parse_arg
from mmlm.tasks import TASKS


def get_config(arg=''):
  args = parse_arg(arg, smoke=False, text='', width=100, epochs=15)
  config = recipe(default_config(), args, __file__)
  config.model.head = {'name': 'glove', 'x_max': 10.0}
  config.optimizer.name = 'adagrad'
  config.optimizer.learning_rate = 0.05
  config.optimizer.schedule = 'constant'
  config.train.batch_size = 65536
  config.train.eval_every = '5 epochs'
  return TASKS[config.task].smoke(config) if args.smoke else config
