"""Generated numerals, English to German; only the picture shows one of the words, which is masked.

  ./launch.sh train configs/translation/numerals.py --workdir runs/numerals
  ./launch.sh ablate runs/numerals

Data: generated offline.
`:fusion=` is concatenation, gated, selective, bottleneck or resampler; `:modalities=text` uses the
text alone.
Time: two to four minutes on 2 CPU cores.
Number: over 98 % exact matches with any fusion; one in ten from the text alone, and no more with
the picture of another numeral.
"""

from ml_collections import ConfigDict

from configs.smoke import smoke
from mmlm.config import chosen, default_config, parse_arg


def get_config(arg: str = '') -> ConfigDict:
  args = parse_arg(arg, smoke=False, fusion='concatenation', modalities='text+image')
  config = default_config()
  config.task = 'translation'
  config.data.name = 'numerals/full'
  config.data.splits = {'train': 'train', 'valid': 'valid', 'test': ('test',)}
  config.data.train_ops = ("decode('L')", "normalize('half')")
  config.data.eval_ops = config.data.train_ops
  config.data.max_length = 40
  config.data.buckets = (16, 20, 24, 40)
  config.tokenizer = {'kind': 'bpe', 'vocab_size': 400, 'lowercase': False, 'min_frequency': 2}
  config.model.dim = 128
  config.model.dropout = 0.1
  encoders = {
    'text': {'name': 'text_transformer', 'layers': 2, 'heads': 4, 'ffn_dim': 256},
    'image': {'name': 'vit', 'patch': 16, 'layers': 1, 'heads': 4, 'ffn_dim': 256},
  }
  config.model.encoders = chosen(args.modalities, encoders)
  config.model.fusion = {'name': args.fusion}
  config.model.head = {'name': 'transformer_decoder', 'layers': 2, 'heads': 4, 'ffn_dim': 256}
  config.model.shared_embeddings = True
  config.optimizer.learning_rate = 2e-3
  config.train.duration = '3 epochs'
  config.train.batch_size = 128
  config.evaluate.metrics = ('exact_match', 'chrf')
  config.evaluate.batch_size = 128
  config.evaluate.shuffled = False  # `ablate` measures what pictures contribute
  if args.smoke:
    return smoke(config)
  return config
