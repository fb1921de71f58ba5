"""Multi30k by Transformer-Tiny (Wu et al. 2021): 4 + 4 layers, D 128, a joint BPE of 10,000.

  ./launch.sh prepare multi30k --source FOLDER
  ./launch.sh train configs/translation/multi30k.py --workdir runs/multi30k
  ./launch.sh evaluate runs/multi30k --splits test_2016,test_2017,test_coco

Data: `:source=de,target=en` is the other direction; `:target=fr` and `:target=cs` are French and
Czech.
Layers are pre-norm, which converges sooner; `:post_norm` is the published form with its learning
rate. `:annealed` takes a quarter of the time: half as many tokens a step, and a learning rate that
falls to zero within 40 epochs (the number for French).
Time and scores: experiments/README.md.
"""

from ml_collections import ConfigDict

from configs.smoke import smoke
from mmlm.config import default_config, parse_arg


def recipe(config: ConfigDict, source: str, target: str) -> ConfigDict:
  """Sets the texts of Multi30k, the tokenizer and the training of all experiments on it."""
  config.task = 'translation'
  config.data.name = 'multi30k/text'
  config.data.fields = {'id': 'id', 'text': source, 'targets': target}
  config.data.splits = {'train': 'train', 'valid': 'valid', 'test': ('test_2016',)}
  config.data.languages = {'text': source, 'target': target}
  config.data.max_length = 56
  config.data.buckets = (8, 10, 12, 14, 16, 18, 20, 24, 28, 36, 56)
  config.tokenizer = {'kind': 'subword', 'vocab_size': 10000, 'lowercase': True, 'min_frequency': 2}
  config.model.dim = 128
  config.model.dropout = 0.3
  config.model.shared_embeddings = True
  config.optimizer.schedule = 'inverse_sqrt'
  config.optimizer.learning_rate = 4e-3
  config.optimizer.warmup = '1000 steps'
  config.optimizer.weight_decay = 0.0
  config.train.duration = '160 epochs'
  config.train.batch_tokens = 4096
  config.train.batch_size = 8
  config.train.monitor = 'bleu_words'
  config.train.patience = 20
  config.train.keep_latest = 10
  config.evaluate.checkpoint = 'latest'
  config.evaluate.average = 10
  config.evaluate.shuffled = False  # `ablate` measures what photos contribute
  config.decoding.beam_size = 5
  config.decoding.length_penalty = 1.0
  if target == 'de':
    config.evaluate.reference_words = {'test_2016': 12103}
  return config


BLOCK = {'layers': 4, 'heads': 4, 'ffn_dim': 256, 'hidden_dropout': False}


def get_config(arg: str = '') -> ConfigDict:
  args = parse_arg(arg, smoke=False, source='en', target='de', post_norm=False, annealed=False)
  config = recipe(default_config(), args.source, args.target)
  block = BLOCK | {'activation': 'relu', 'pre_norm': not args.post_norm}
  config.model.encoders = {'text': {'name': 'text_transformer', **block}}
  config.model.head = {'name': 'transformer_decoder', 'positions': 'sinusoidal', **block}
  if args.post_norm:
    config.optimizer.learning_rate = 5e-3
    config.optimizer.warmup = '2000 steps'
    config.optimizer.clip_norm = 0.0
  if args.annealed:
    config.optimizer.schedule = 'linear'
    config.optimizer.learning_rate = 2.5e-3
    config.optimizer.warmup = '800 steps'
    config.train.batch_tokens = 2048
    config.train.duration = '40 epochs'
  if args.smoke:
    return smoke(config)
  return config
