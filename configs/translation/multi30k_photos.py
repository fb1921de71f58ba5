r"""Translation with photos: the pairs of Multi30k whose photo is also in Flickr8k.

  ./launch.sh prepare multi30k/photos --source FOLDER
  ./launch.sh train configs/translation/multi30k_photos.py:modalities=text --workdir runs/text
  ./launch.sh train configs/translation/multi30k_photos.py:fusion=selective,start=runs/text \
    --workdir runs/selective
  ./launch.sh ablate runs/selective
  ./launch.sh compare runs/selective runs/text

Data: 6,993 / 242 / 243 pairs.
`:fusion=` is concatenation, gated, selective, bottleneck or resampler; `:modalities=text` uses the
text alone. `start=` resumes from the parameters of another run for a few epochs: here that of the
text alone. `:modalities=text,start=runs/text` is what a fusion is compared with.
Scores: experiments/README.md.
"""

from ml_collections import ConfigDict

from configs.smoke import smoke
from configs.translation.multi30k import BLOCK, recipe
from mmlm.config import chosen, default_config, parse_arg


def get_config(arg: str = '') -> ConfigDict:
  args = parse_arg(
    arg,
    smoke=False,
    source='en',
    target='de',
    fusion='selective',
    modalities='text+image',
    start='',
  )
  config = recipe(default_config(), args.source, args.target)
  config.data.name = 'multi30k/photos'
  if 'image' in args.modalities:
    config.data.fields['image'] = 'image'
  config.data.train_ops = ('decode', 'resize(224)', 'flip', 'normalize(0.498039, 0.501961)')
  config.data.eval_ops = ('decode', 'resize(224)', 'normalize(0.498039, 0.501961)')
  config.data.buckets = (12, 16, 20, 28, 56)
  config.tokenizer.vocab_size = 6000
  encoders = {
    'text': {'name': 'text_transformer', **BLOCK, 'layers': 3},
    'image': {'name': 'efficientnet_lite0', 'grid_dropout': 0.2},
  }
  config.model.encoders = chosen(args.modalities, encoders)
  config.model.fusion = {'name': args.fusion}
  config.model.head = {'name': 'transformer_decoder', **BLOCK, 'layers': 3}
  config.optimizer.schedule = 'linear'
  config.optimizer.learning_rate = 2.5e-3
  config.optimizer.warmup = '400 steps'
  config.train.duration = '30 epochs'
  config.train.batch_tokens = 1024
  config.train.patience = 0
  config.train.keep_latest = 5
  config.evaluate.average = 5
  config.evaluate.reference_words = {}
  if args.start:
    start_from_run(config, args)
  if args.smoke:
    return smoke(config)
  return config


def start_from_run(config: ConfigDict, args: ConfigDict) -> None:
  """Continues from the parameters and the tokenizer of another run, for a few epochs."""
  config.tokenizer.kind = 'run'
  config.tokenizer.source = args.start
  config.train.start_from = args.start
  config.train.start_rules = (('.*', True),)
  if 'image' in args.modalities:
    new = ('(fusion|encoders_image)/.*', False)
    config.train.start_rules = (new, ('.*', True))
  config.optimizer.learning_rate = 1e-3
  config.optimizer.warmup = '100 steps'
  config.train.duration = '5 epochs'
  config.train.keep_latest = 3
  config.evaluate.average = 3
