"""CoVoST 2: speech translation of Common Voice recordings, for an accelerator.

  ./launch.sh prepare covost/fr_en --source FOLDER
  ./launch.sh train configs/speech/covost.py --workdir runs/covost

`:pair=en_de` is English to German, and so on. The CTC branch learns the transcript, the decoder its
translation; `:direct` is a decoder alone. The encoder is that of librispeech.py.
"""

from ml_collections import ConfigDict

from configs.smoke import smoke
from configs.speech.keypad_tones import recipe
from configs.speech.librispeech import ENCODER, large
from mmlm.config import default_config, parse_arg


def get_config(arg: str = '') -> ConfigDict:
  args = parse_arg(arg, smoke=False, pair='fr_en', direct=False)
  if args.direct:
    config = recipe(default_config(), ENCODER, 'transformer_decoder', layers=6)
  else:
    config = recipe(default_config(), ENCODER, layers=6, ctc_labels='transcript')
  config = large(config)
  config.task = 'speech_translation'
  config.data.name = f'covost/{args.pair}'
  config.data.fields = {
    'id': 'id',
    'audio': 'audio',
    'targets': 'translation',
    'speaker': 'speaker',
  }
  if not args.direct:
    config.data.fields['transcript'] = 'sentence'
  config.data.splits = {'train': 'train', 'valid': 'dev', 'test': ('test',)}
  config.decoding.ctc_weight = 0.0  # the branch writes the source language
  config.tokenizer.lowercase = False
  config.train.monitor = 'bleu'
  config.decoding.length_penalty = 1.0
  if args.smoke:
    return smoke(config)
  return config
