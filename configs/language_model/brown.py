"""Word-level language model of the Brown corpus: a Transformer, or an LSTM (Merity et al. 2018).

  ./launch.sh prepare brown --source FOLDER
  ./launch.sh train configs/language_model/brown.py:model=lstm --workdir runs/brown_lstm
  ./launch.sh evaluate runs/brown_lstm --splits valid,test

Data: words that occur three times or more in the training text; all others are <unk>, so that the
perplexities of both models compare.
`:model=transformer` trains on windows of 128 tokens over consecutive sentences, and is evaluated
with half a window of context. `:averaged` trains the LSTM by plain SGD and evaluates the mean of
its parameters (NT-ASGD). For that, and for more epochs, a wider LSTM with more dropout is usual:
`--config.model.head.hidden_dim=650 --config.model.head.weight_drop=0.5
--config.model.dropout=0.4 --config.train.duration='40 epochs'`.
Time: less than an hour on one CPU core; 3 million parameters, most of them embeddings.
Scores: experiments/README.md.
"""

from ml_collections import ConfigDict

from configs.smoke import smoke
from mmlm.config import default_config, parse_arg
from mmlm.utils.choices import one_of


def transformer(config: ConfigDict, args: ConfigDict) -> None:
  config.data.stream = 'windows'
  config.data.max_length = 128
  config.evaluate.stride = 64
  config.model.dropout = 0.2
  config.model.head = {
    'name': 'transformer_decoder',
    'layers': 2,
    'heads': 4,
    'positions': 'rotary',
  }
  config.optimizer.warmup = '200 steps'
  config.optimizer.weight_decay = 0.1
  config.train.batch_size = 32


def lstm(config: ConfigDict, args: ConfigDict) -> None:
  config.data.stream = 'continuous'
  config.data.max_length = 70
  config.evaluate.batch_size = 10
  config.model.dropout = 0.1  # six epochs hardly overfit
  config.model.head = {
    'name': 'lstm',
    'layers': 2,
    'hidden_dim': 256,
    'weight_drop': 0.0,
    'embedding_dropout': 0.0,
  }
  config.optimizer.learning_rate = 1e-2
  config.train.batch_size = 40
  if args.averaged:
    config.optimizer.name = 'sgd'
    config.optimizer.schedule = 'constant'
    config.optimizer.warmup = '0 steps'
    config.optimizer.weight_decay = 1.2e-6
    config.optimizer.learning_rate = 30.0
    config.optimizer.clip_norm = 0.25
    config.optimizer.average_after = 5


MODELS = {'transformer': transformer, 'lstm': lstm}


def get_config(arg: str = '') -> ConfigDict:
  args = parse_arg(arg, smoke=False, model='transformer', averaged=False)
  config = default_config()
  config.task = 'language_model'
  config.data.name = 'brown'
  config.tokenizer = {
    'kind': 'word',
    'vocab_size': 50000,
    'lowercase': False,
    'min_frequency': 3,
    'exact': True,
  }
  config.model.dim = 128
  config.optimizer.learning_rate = 2e-3
  config.train.label_smoothing = 0.0
  config.train.duration = '6 epochs'
  MODELS[one_of('model', args.model, MODELS)](config, args)
  if args.smoke:
    return smoke(config)
  return config
