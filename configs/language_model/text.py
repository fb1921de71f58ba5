r"""Language model of your own text: a file, a folder of *.txt, a manifest, or a prepared set.

  ./launch.sh train configs/language_model/text.py:text=my/book.txt --workdir runs/mine
  ./launch.sh train configs/language_model/text.py:text=my/train,valid=my/valid --workdir runs/mine
  ./launch.sh train configs/language_model/text.py:text=my/train.jsonl,valid=my/valid.jsonl \
    --workdir runs/mine
  ./launch.sh generate runs/mine --prompt "Once upon" --temperature 0.8

Data: without `valid` the last tenth of the text validates. `documents=line` or `paragraph` divides
files into documents. A prepared set: `set=multi30k/text,field=en,text=train,valid=valid`.
Arguments: `tokens` is char, bpe or word. `model=transformer` trains on packed documents, each of
which attends to itself alone; `model=lstm` on continuous text. `gpt2=FOLDER` starts from a GPT-2,
with its tokenizer and sizes.
With `tokenizer.kind=run`, a run can be fused into the search of the run that the tokenizer is from
(`decoding.language_model`), or start its decoder (`train.start_from`).
"""

from ml_collections import ConfigDict

from configs.smoke import smoke
from mmlm.config import default_config, parse_arg
from mmlm.pretrained.gpt2 import gpt2_options
from mmlm.utils.choices import one_of

MODELS = {
  'transformer': ('packed', {'name': 'transformer_decoder', 'layers': 6, 'heads': 8}),
  'lstm': ('continuous', {'name': 'lstm', 'layers': 2, 'hidden_dim': 512, 'weight_drop': 0.3}),
}


def splits(args: ConfigDict) -> tuple[str, dict, str, str]:
  """Returns the data set, its fields, and the splits to train and to validate on."""
  if args.set:
    return args.set, {'targets': args.field}, args.text, args.valid
  if args.text.endswith('.jsonl'):
    return 'manifest', {}, args.text, args.valid
  fields = {'documents': args.documents}
  if args.valid:
    return 'text', fields, args.text, args.valid
  return 'text', fields, f'{args.text}[:90%]', f'{args.text}[90%:]'


def get_config(arg: str = '') -> ConfigDict:
  args = parse_arg(
    arg,
    smoke=False,
    text='text.txt',
    valid='',
    documents='file',
    set='',
    field='text',
    tokens='bpe',
    model='transformer',
    context=256,
    gpt2='',
  )
  config = default_config()
  config.task = 'language_model'
  config.data.name, config.data.fields, train, valid = splits(args)
  config.data.splits = {'train': train, 'valid': valid, 'test': (valid,)}
  config.data.stream, head = MODELS[one_of('model', args.model, MODELS)]
  config.data.across = False
  config.data.max_length = args.context
  config.tokenizer = {
    'kind': 'gpt2' if args.gpt2 else args.tokens,
    'source': args.gpt2,
    'vocab_size': 8000,
    'lowercase': False,
    'min_frequency': 2,
    'exact': True,
  }
  config.model.dim = 256
  config.model.dropout = 0.2
  config.model.head = head
  config.optimizer.warmup = '200 steps'
  config.optimizer.weight_decay = 0.1
  config.train.batch_size = 32
  config.evaluate.batch_size = 32
  config.train.label_smoothing = 0.0
  config.train.duration = '10 epochs'
  config.train.patience = 3
  config.evaluate.stride = args.context // 2
  if args.gpt2:
    config.model.head, sizes = gpt2_options(args.gpt2)
    config.model.dim = sizes['dim']
    config.data.max_length = sizes['max_length']
    config.optimizer.learning_rate = 3e-5
    config.optimizer.rate_rules = (('.*/tokens/bias', 0.0), ('.*', 1.0))
  if args.smoke:
    return smoke(config)
  return config
