"""Character-level language model of Tiny Shakespeare at the sizes of nanoGPT.

  ./launch.sh prepare tiny_shakespeare --source FOLDER
  ./launch.sh train configs/language_model/tiny_shakespeare.py --workdir runs/shakespeare
  ./launch.sh evaluate runs/shakespeare
  ./launch.sh generate runs/shakespeare --prompt "ROMEO:" --temperature 0.8 --top_k 20

Data: the last tenth of the text validates. `evaluate` scores every character of it, in windows side
by side; `--config.evaluate.stride=8` gives each character more context.
`:size=cpu`: 4 layers, D 128, windows of 64 characters, 2,000 steps of 12. `:size=gpu`: 6 layers,
D 384, windows of 256, 5,000 steps of 64, in bfloat16, with dropout 0.2 (also of attention weights,
and inside the feed-forward layers, where nanoGPT has none) and averaged parameters.
Positions are rotary; nanoGPT's are learned: `--config.model.head.positions=learned`.
Time and scores: experiments/README.md.
"""

from ml_collections import ConfigDict

from configs.smoke import smoke
from mmlm.config import default_config, parse_arg
from mmlm.utils.choices import one_of

SIZES = {
  'cpu': {
    'layers': 4,
    'heads': 4,
    'dim': 128,
    'context': 64,
    'batch': 12,
    'steps': 2000,
    'dropout': 0.0,
    'dtype': 'float32',
    'ema': 0.0,
  },
  'gpu': {
    'layers': 6,
    'heads': 6,
    'dim': 384,
    'context': 256,
    'batch': 64,
    'steps': 5000,
    'dropout': 0.2,
    'dtype': 'bfloat16',
    'ema': 0.999,
  },
}


def get_config(arg: str = '') -> ConfigDict:
  args = parse_arg(arg, smoke=False, size='cpu')
  size = SIZES[one_of('size', args.size, SIZES)]
  config = default_config()
  config.task = 'language_model'
  config.data.name = 'tiny_shakespeare'
  config.data.splits = {'train': 'train', 'valid': 'valid', 'test': ('valid',)}
  config.data.stream = 'windows'
  config.data.ends = False
  config.data.max_length = size['context']
  config.tokenizer = {
    'kind': 'char',
    'vocab_size': 100,
    'lowercase': False,
    'min_frequency': 1,
    'exact': True,
  }
  config.model.dim = size['dim']
  config.model.dropout = size['dropout']
  config.model.dtype = size['dtype']
  config.model.head = {
    'name': 'transformer_decoder',
    'layers': size['layers'],
    'heads': size['heads'],
    'positions': 'rotary',
    'attention_dropout': size['dropout'],
  }
  config.optimizer.learning_rate = 1e-3
  config.optimizer.warmup = '100 steps'
  config.optimizer.final_fraction = 0.1
  config.optimizer.beta2 = 0.99
  config.optimizer.epsilon = 1e-8
  config.optimizer.weight_decay = 0.1
  config.train.duration = f'{size["steps"]} steps'
  config.train.batch_size = size['batch']
  config.train.label_smoothing = 0.0
  config.train.ema_decay = size['ema']
  config.train.log_every = '100 steps'
  config.train.eval_every = '250 steps'
  config.evaluate.metrics = ('nats_per_character', 'bits_per_character')
  config.parallel.strategy = 'jit'  # 12 examples are too few to divide
  if args.smoke:
    return smoke(config)
  return config
