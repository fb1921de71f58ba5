"""Generated sentiment of a sentence, a face and a melody: the label needs all three.

  ./launch.sh train configs/sentiment/generated.py:fusion=tensor --workdir runs/three
  ./launch.sh ablate runs/three

Data: generated offline (mmlm/data/datasets/three_modalities.py). Half of the training examples lack
one or two modalities, which teaches what each of them contributes.
`:fusion=` is any of mmlm/models/fusion/, `:modalities=text+audio` any subset of text, image and
audio.
Scores: experiments/README.md.
"""

from ml_collections import ConfigDict

from configs.smoke import smoke
from mmlm.config import chosen, default_config, parse_arg


def get_config(arg: str = '') -> ConfigDict:
  args = parse_arg(arg, smoke=False, fusion='cross_attention', modalities='text+image+audio')
  config = default_config()
  config.task = 'classification'
  config.data.name = 'three_modalities/full'
  fields = ('id', 'label', *args.modalities.split('+'))
  config.data.fields = dict(zip(fields, fields))
  config.data.train_ops = ("decode('L')", "normalize('half')")
  config.data.eval_ops = config.data.train_ops
  config.data.max_length = 16
  reads_text = 'text' in args.modalities
  config.tokenizer = {
    'kind': 'word' if reads_text else 'none',
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
  if args.smoke:
    return smoke(config)
  return config
