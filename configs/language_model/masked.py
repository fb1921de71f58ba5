r"""Masked language model: a BERT trained on any text (Devlin et al. 2019), to start other encoders.

  ./launch.sh train configs/language_model/masked.py:set=sst2,field=text,valid=dev \
    --workdir runs/masked
  ./launch.sh train configs/language_model/masked.py:text=my/sentences.txt --workdir runs/masked
  ./launch.sh train configs/sentiment/low_data.py:start=runs/masked --workdir runs/quarter

Data: a text on each line of a file, or a prepared set. Masks are drawn anew in every step;
validation always masks the same words.
Arguments: `layers`, `dim` and `context` are the sizes; `bert=FOLDER` starts from a BERT, with its
tokenizer and sizes.
"""

from ml_collections import ConfigDict

from configs.smoke import smoke
from mmlm.config import default_config, parse_arg
from mmlm.pretrained.bert import bert_options

BUCKETS = (8, 12, 16, 24, 32, 48)


def set_data(config: ConfigDict, args: ConfigDict) -> None:
  """Sets a prepared data set, or the lines of a text."""
  if args.set:
    config.data.name = args.set
    config.data.fields = {'text': args.field}
    train = 'train'
    valid = args.valid or 'valid'
  else:
    config.data.name = 'text'
    config.data.fields = {'documents': 'line'}
    train = args.text
    valid = args.valid
    if not valid:
      train = f'{args.text}[:95%]'
      valid = f'{args.text}[95%:]'
  config.data.splits = {'train': train, 'valid': valid, 'test': (valid,)}


def set_encoder(config: ConfigDict, args: ConfigDict) -> None:
  """Sets a new BERT, or a pretrained one with its tokenizer."""
  if args.bert:
    encoder = bert_options(args.bert)
    config.tokenizer.kind = 'wordpiece'
    config.tokenizer.source = args.bert
  else:
    encoder = {
      'name': 'bert',
      'width': args.dim,
      'layers': args.layers,
      'heads': args.dim // 64 or 1,
      'ffn_dim': 4 * args.dim,
      'max_positions': args.context,
    }
  config.model.dim = encoder['width']
  config.model.encoders = {'text': encoder}


def get_config(arg: str = '') -> ConfigDict:
  args = parse_arg(
    arg,
    smoke=False,
    text='text.txt',
    valid='',
    set='',
    field='text',
    layers=4,
    dim=256,
    context=64,
    bert='',
  )
  config = default_config()
  config.task = 'masked_language_model'
  set_data(config, args)
  config.data.max_length = args.context
  shorter = [length for length in BUCKETS if length < args.context]
  config.data.buckets = (*shorter, args.context)
  config.tokenizer = {
    'kind': 'bpe',
    'vocab_size': 8000,
    'lowercase': True,
    'min_frequency': 2,
    'mask': True,
  }
  set_encoder(config, args)
  config.model.head = {'name': 'masked_tokens'}
  config.optimizer.learning_rate = 5e-4
  config.optimizer.schedule = 'linear'
  config.optimizer.warmup = '1000 steps'
  config.train.duration = '20 epochs'
  config.train.label_smoothing = 0.0
  config.evaluate.shuffled = False
  if args.smoke:
    return smoke(config)
  return config
