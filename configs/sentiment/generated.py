"""Generated sentiment of a sentence, a face and a melody: the label needs all three, so that what fuses is seen to fuse. Offline.
Half of the training examples lack one or two of them: these teach what each says (mmlm/data/datasets/three_modalities.py).

  ./launch.sh train configs/sentiment/generated.py:fusion=tensor --workdir runs/three
  ./launch.sh ablate runs/three

`:fusion=` any of mmlm/models/fusion.py, `:modalities=text+audio` any subset of text, image and audio.
"""

from configs.smoke import smoke
from mmlm.config import chosen, default_config, parse_arg


def get_config(arg=''):
  args = parse_arg(arg, smoke=False, fusion='cross_attention', modalities='text+image+audio')
  config = default_config()
  config.task = 'classification'
  config.data.name = 'three_modalities/full'
  config.data.fields = {name: name for name in ('id', 'label', *args.modalities.split('+'))}
  config.data.train_ops = config.data.eval_ops = ("decode('L')", "normalize('half')")
  config.data.max_length = 16
  config.tokenizer = {
    'kind': 'word',
    'source': '',
    'vocab_size': 200,
    'lowercase': True,
    'min_frequency': 1,
  }
  config.model.dim = 64
  encoders = {
    'text': {'name': 'text_transformer', 'layers': 1, 'heads': 4},
    'image': {'name': 'vit', 'patch': 8, 'layers': 2, 'heads': 4},
    'audio': {'name': 'feature_recurrent', 'width': 12},
  }
  config.model.encoders = chosen(args.modalities, encoders)
  if 'text' not in config.model.encoders:
    config.tokenizer.kind = 'none'
  config.model.fusion = {'name': args.fusion}
  config.model.head = {
    'name': 'classifier',
    'hidden': 64,
    'classes': ('negative', 'neutral', 'positive'),
  }
  config.optimizer.learning_rate = 2e-3
  config.train.duration = '8 epochs'
  config.train.batch_size = 100
  config.train.label_smoothing = 0.0
  config.train.monitor = 'accuracy'
  config.evaluate.batch_size = 100
  return smoke(config) if args.smoke else config
