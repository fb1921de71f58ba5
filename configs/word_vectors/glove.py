"""Word vectors by GloVe (Pennington et al. 2014) of any text.

  ./launch.sh train configs/word_vectors/glove.py:text=brown.txt --workdir runs/glove
  ./launch.sh evaluate runs/glove
  ./launch.sh vectors runs/glove --format glove --output vectors.txt

The text is that of skipgram.py. Pairs of words up to 10 places apart are counted once, on both sides; an epoch goes through all pairs that occur.
Settings are those of the code of its authors for small texts: x_max 10, rate 0.05 by AdaGrad; the vectors are the sums of both tables.
"""

from mmlm.config import default_config, parse_arg


def get_config(arg=''):
  args = parse_arg(arg, smoke=False, text='', width=100, epochs=15)
  text = args.text or (__file__ if args.smoke else 'text.txt')
  config = default_config()
  config.task = 'word_vectors'
  config.data.name = 'text'
  config.data.fields = {'documents': 'file'}
  config.data.splits = {'train': text, 'valid': text, 'test': ()}
  config.tokenizer = {'kind': 'word', 'source': '', 'vocab_size': 0, 'lowercase': True, 'min_frequency': 5}
  config.model.dim = args.width
  config.model.head = {'name': 'glove', 'x_max': 10.0}
  config.optimizer.name = 'adagrad'
  config.optimizer.learning_rate = 0.05
  config.optimizer.schedule = 'constant'
  config.optimizer.warmup = '0 steps'
  config.optimizer.weight_decay = 0.0
  config.optimizer.clip_norm = 0.0
  config.train.duration = f'{args.epochs} epochs'
  config.train.batch_size = 65536
  config.train.eval_every = '5 epochs'
  return smoke(config) if args.smoke else config


def smoke(config):
  """The same in seconds: the words of this file."""
  config.tokenizer.min_frequency = 1
  config.model.dim = 8
  config.train.batch_size, config.model.head.unlock()['micro_batch'] = 256, 64
  config.train.duration, config.train.log_every, config.train.eval_every = '6 steps', '2 steps', '3 steps'
  return config
