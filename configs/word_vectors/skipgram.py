"""Word vectors of any text by skip-gram or CBOW with negative sampling (Mikolov et al. 2013).

  ./launch.sh train configs/word_vectors/skipgram.py:text=brown.txt --workdir runs/vectors
  ./launch.sh evaluate runs/vectors
  ./launch.sh export runs/vectors --format word2vec --output vectors.txt
  ./launch.sh train configs/sentiment/cnn_mr.py:vectors=vectors.txt,width=100 --workdir runs/mr

Data: `text` is a UTF-8 file (.txt or .txt.xz) with a sentence a line, or a folder of them.
A manifest whose lines have a `text`: `--config.data.name=manifest` and
`--config.data.splits.train=my.jsonl`. A TFDS set: its name, its split, and
`data.fields={'text': ...}`.
Words are separated by spaces, in lower case (`tokenizer.lowercase`), and occur five times or more
(`tokenizer.min_frequency`); `data.languages.text=en` applies Moses' rules first.
`:cbow` predicts each word from the mean of its window. `:fasttext` adds subwords of 3 to 6 letters
(Bojanowski et al. 2017) at their learning rate of 0.05. The settings are the defaults of word2vec;
how updates differ from its code: mmlm/word_vectors/objectives.py.
`evaluate` reads similarity sets and analogies below $MMLM_DATA/text/wordsim.
Scores: experiments/benchmarks/word_vectors.py.
"""

from ml_collections import ConfigDict

from configs.smoke import smoke
from mmlm.config import default_config, parse_arg


def recipe(config: ConfigDict, args: ConfigDict, file: str) -> ConfigDict:
  """Sets what all word vectors share; the small form trains on the words of `file`."""
  text = args.text or 'text.txt'
  if args.smoke and not args.text:
    text = file
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


def get_config(arg: str = '') -> ConfigDict:
  args = parse_arg(arg, smoke=False, text='', cbow=False, fasttext=False, width=100, epochs=5)
  config = recipe(default_config(), args, __file__)
  config.model.head = {
    'name': 'cbow' if args.cbow else 'skip_gram',
    'longest': 6 if args.fasttext else 0,  # letters of a subword; 0 = whole words alone
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
  if args.smoke:
    return smoke(config)
  return config
