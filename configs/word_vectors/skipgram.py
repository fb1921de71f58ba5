"""Word vectors by skip-gram with negative sampling (Mikolov et al. 2013) of any text; CBOW, or with pieces of words as fastText has them.

  ./launch.sh train configs/word_vectors/skipgram.py:text=brown.txt --workdir runs/vectors
  ./launch.sh evaluate runs/vectors                             # similarity sets and analogies below $MMLM_DATA/text/wordsim
  ./launch.sh export runs/vectors --format word2vec --output vectors.txt    # or word2vec_binary, glove, fasttext
  ./launch.sh train configs/sentiment/cnn_mr.py:vectors=vectors.txt,width=100 --workdir runs/mr

`text`: a file of UTF-8 (.txt, or packed .txt.xz), a sentence a line, or a folder of these. A manifest whose lines have a `text`:
`--config.data.name=manifest --config.data.splits.train=my.jsonl`; a TFDS set: its name, its split, and `data.fields={'text': ...}`.
`:cbow` predicts each word from the mean of its window. `:fasttext` adds pieces of 3 to 6 letters (Bojanowski et al. 2017) at the rate 0.05
that is their code's. Words are what stands between spaces, in lower case (`tokenizer.lowercase`), those with 5 or more places in the text
(`tokenizer.min_frequency`); `data.languages.text=en` puts Moses' rules before. The settings are those that word2vec's code has by itself;
how updates differ from it stands in mmlm/word_vectors/objectives.py. What is measured: experiments/benchmarks/word_vectors.py.
"""

from mmlm.config import default_config, parse_arg
from mmlm.tasks import TASKS


def recipe(config, args, file):
  """What all word vectors have; the small form reads the words of a `file`."""
  text = args.text or (file if args.smoke else 'text.txt')
  config.task = 'word_vectors'
  config.data.name = 'text'
  config.data.fields = {'documents': 'file'}
  config.data.splits = {'train': text, 'valid': text, 'test': ()}
  config.tokenizer = {
    'kind': 'word',
    'source': '',
    'vocab_size': 0,
    'lowercase': True,
    'min_frequency': 5,
  }
  config.model.dim = args.width
  config.optimizer.warmup = '0 steps'
  config.optimizer.weight_decay = 0.0
  config.optimizer.clip_norm = 0.0
  config.train.duration = f'{args.epochs} epochs'
  return config


def get_config(arg=''):
  args = parse_arg(arg, smoke=False, text='', cbow=False, fasttext=False, width=100, epochs=5)
  config = recipe(default_config(), args, __file__)
  config.model.head = {
    'name': 'cbow' if args.cbow else 'skip_gram',
    'longest': 6 if args.fasttext else 0,
  }
  config.optimizer.name = 'sgd'
  if args.cbow or args.fasttext:
    config.optimizer.learning_rate = 0.05
  else:
    config.optimizer.learning_rate = 0.025
  config.optimizer.schedule = 'linear'
  config.optimizer.final_fraction = 0.004
  config.train.batch_size = 16384
  config.train.eval_every = '1 epochs'
  return TASKS[config.task].smoke(config) if args.smoke else config
