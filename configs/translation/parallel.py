r"""Translation of your own texts: two files with as many lines, or a table with a header.

  ./launch.sh train \
    configs/translation/parallel.py:train=my/train,valid=my/valid,test=my/test,source=en,target=de \
    --workdir runs/mine
  ./launch.sh translate runs/mine < text.en

Data: my/train.en and my/train.de, or my/train.tsv. A language code selects Moses' rules;
`moses=False` takes texts as they are.
A pre-norm Transformer: 3 + 3 layers, D 256.
"""

from ml_collections import ConfigDict

from configs.smoke import smoke
from mmlm.config import default_config, parse_arg


def recipe(config: ConfigDict, source: str, target: str, moses: bool) -> ConfigDict:
  """Sets tokenizer, model and training for translations of any source."""
  config.task = 'translation'
  if moses:
    config.data.languages = {'text': source, 'target': target}
  config.data.max_length = 128
  config.data.buckets = (8, 12, 16, 20, 24, 28, 36, 48, 64, 96, 128)
  config.tokenizer = {'kind': 'unigram', 'vocab_size': 8000, 'lowercase': False, 'min_frequency': 1}
  config.model.dim = 256
  config.model.dropout = 0.2
  config.model.encoders = {'text': {'name': 'text_transformer', 'layers': 3, 'heads': 4}}
  config.model.head = {'name': 'transformer_decoder', 'layers': 3, 'heads': 4}
  config.model.shared_embeddings = True
  config.optimizer.schedule = 'inverse_sqrt'
  config.optimizer.learning_rate = 1e-3
  config.optimizer.warmup = '1000 steps'
  config.train.duration = '30 epochs'
  config.train.batch_tokens = 4096
  config.train.batch_size = 8
  config.train.monitor = 'bleu'
  config.train.patience = 5
  config.train.keep_latest = 5
  config.evaluate.average = 5
  config.evaluate.checkpoint = 'latest'
  config.decoding.beam_size = 5
  config.decoding.length_penalty = 1.0
  return config


def get_config(arg: str = '') -> ConfigDict:
  args = parse_arg(
    arg,
    smoke=False,
    train='train',
    valid='valid',
    test='test',
    source='en',
    target='de',
    moses=True,
  )
  config = recipe(default_config(), args.source, args.target, args.moses)
  config.data.name = 'parallel'
  config.data.fields = {'text': args.source, 'targets': args.target}
  config.data.splits = {'train': args.train, 'valid': args.valid, 'test': (args.test,)}
  if args.smoke:
    return smoke(config)
  return config
