r"""Recognition of your own recordings: JSON lines with `id`, `audio` and `target`.

  ./launch.sh train configs/speech/manifest.py:train=my/train.jsonl,valid=my/valid.jsonl \
    --workdir runs/mine
  ./launch.sh predict runs/mine --input sound.wav

Data: `audio` is a path relative to the manifest (WAV, FLAC, Ogg, Opus or MP3); `:features=39` reads
.npy files of so many values a frame. `test=` names a manifest for `evaluate`; without it the
validation set is scored.
The Conformer fits some hours of speech; for more, `:tokenizer=unigram` with
`--config.tokenizer.vocab_size=1000` writes subwords. With `:translate` the target is a translation
and CTC learns the `transcript` of each line.
"""

from ml_collections import ConfigDict

from configs.smoke import smoke
from configs.speech.keypad_tones import recipe
from mmlm.config import default_config, parse_arg

NORMALIZED = ('standardize', 'spec_augment(5, 2, 15, 2, 40)')


def get_config(arg: str = '') -> ConfigDict:
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
  encoder = {'name': 'conformer', 'width': args.features or 80}
  if args.translate:
    config = recipe(default_config(), encoder, ctc_labels='transcript')
  else:
    config = recipe(default_config(), encoder)
  config.data.name = 'manifest'
  config.data.splits = {
    'train': args.train,
    'valid': args.valid,
    'test': (args.test or args.valid,),
  }
  if args.features:
    config.data.train_ops = ('stretch(0.9, 1.1)', *NORMALIZED)
    config.data.eval_ops = ('standardize',)
  else:
    config.data.train_ops = ('decode_sound(16000)', 'speed', 'log_mel(80)', *NORMALIZED)
    config.data.eval_ops = ('decode_sound(16000)', 'log_mel(80)', 'standardize')
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
  if args.smoke:
    return smoke(config)
  return config
