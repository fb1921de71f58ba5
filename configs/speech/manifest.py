"""Recognition on your own sounds: JSON lines with `id`, `audio` (WAV, FLAC, Ogg, Opus, MP3; a path relative to the file) and `target`.

  ./launch.sh train configs/speech/manifest.py:train=my/train.jsonl,valid=my/valid.jsonl --workdir runs/mine
  ./launch.sh predict runs/mine --input sound.wav

A Conformer that fits some hours of speech; `:tokenizer=unigram` with `--config.tokenizer.vocab_size=1000` writes pieces of words, for more. With
`:translate` the target is a translation, and a `transcript` in each line what the CTC branch learns. `:features=39` reads files .npy of so
many values a row. `test=` names a manifest for `evaluate`; without it the validation set is scored.
"""

from configs.smoke import smoke
from configs.speech.keypad_tones import recipe
from mmlm.config import default_config, parse_arg


def get_config(arg=''):
  args = parse_arg(
    arg,
    smoke=False,
    train='train.jsonl',
    valid='valid.jsonl',
    test='',
    tokenizer='char',
    translate=False,
    features=0,
  )
  if args.translate:
    translation = {'ctc_labels': 'transcript'}
  else:
    translation = {}
  config = recipe(
    default_config(), {'name': 'conformer', 'width': args.features or 80}, **translation
  )
  config.data.name = 'manifest'
  config.data.splits = {
    'train': args.train,
    'valid': args.valid,
    'test': (args.test or args.valid,),
  }
  if args.features:
    sounds = ()
  else:
    sounds = ('decode_sound(16000)', 'log_mel(80)')
  if args.features:
    faster = 'stretch(0.9, 1.1)'
  else:
    faster = 'speed'
  config.data.eval_ops = (*sounds, 'standardize')
  config.data.train_ops = (
    *sounds[:1],
    faster,
    *sounds[1:],
    'standardize',
    'spec_augment(5, 2, 15, 2, 40)',
  )
  config.data.max_length = 3000  # thirty seconds
  config.data.buckets = (200, 400, 600, 800, 1000, 1500, 2000, 3000)
  config.tokenizer.kind = args.tokenizer
  config.model.dim = 192
  config.model.dropout = 0.2
  if args.translate:
    config.task = 'speech_translation'
    config.train.monitor = 'bleu'
    config.decoding.ctc_weight = 0.0
    config.decoding.length_penalty = 1.0
  config.optimizer.learning_rate = 1e-3
  config.optimizer.warmup = '1000 steps'
  config.train.duration = '60 epochs'
  config.train.batch_size = 16
  config.train.patience = 10
  config.train.ema_decay = 0.999
  config.decoding.max_length = 400
  return smoke(config) if args.smoke else config
