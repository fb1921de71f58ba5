"""A BERT that learns by finding masked words of any text (Devlin et al. 2019), to start the encoder of another task.

  ./launch.sh train configs/language_model/masked.py:set=sst2,field=text,valid=dev --workdir runs/masked
  ./launch.sh train configs/language_model/masked.py:text=my/sentences.txt --workdir runs/masked     # a text a line
  ./launch.sh train configs/sentiment/low_data.py:start=runs/masked --workdir runs/quarter           # a quarter of SST-2 from there

`layers`, `dim` and `context` are the sizes; `bert=FOLDER` goes on from a BERT with its tokenizer and sizes. Which words are masked is drawn
anew in each step; validation masks the same ones each time.
"""

from configs.smoke import smoke
from mmlm.config import default_config, parse_arg
from mmlm.pretrained.bert import bert_options


def get_config(arg=''):
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
  if args.set:
    config.data.name = args.set
    config.data.fields = {'text': args.field}
    parts = ('train', args.valid or 'valid')
  else:
    config.data.name = 'text'
    config.data.fields = {'documents': 'line'}
    if args.valid:
      parts = (args.text, args.valid)
    else:
      parts = (f'{args.text}[:95%]', f'{args.text}[95%:]')
  config.data.splits = {'train': parts[0], 'valid': parts[1], 'test': (parts[1],)}
  config.data.max_length = args.context
  config.data.buckets = tuple(
    sorted({length for length in (8, 12, 16, 24, 32, 48) if length < args.context} | {args.context})
  )
  config.tokenizer = {
    'kind': 'bpe',
    'vocab_size': 8000,
    'lowercase': True,
    'min_frequency': 2,
    'mask': True,
  }
  config.model.dim = args.dim
  encoder = {
    'name': 'bert',
    'width': args.dim,
    'layers': args.layers,
    'heads': args.dim // 64 or 1,
    'ffn_dim': 4 * args.dim,
    'max_positions': args.context,
  }
  if args.bert:
    encoder = bert_options(args.bert)
    config.model.dim = encoder['width']
    config.tokenizer.kind = 'wordpiece'
    config.tokenizer.source = args.bert
  config.model.encoders = {'text': encoder}
  config.model.head = {'name': 'masked_tokens'}
  config.optimizer.learning_rate = 5e-4
  config.optimizer.schedule = 'linear'
  config.optimizer.warmup = '1000 steps'
  config.train.duration = '20 epochs'
  config.train.label_smoothing = 0.0
  config.evaluate.shuffled = False
  return smoke(config) if args.smoke else config
