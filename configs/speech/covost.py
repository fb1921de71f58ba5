"""CoVoST 2: Common Voice recordings to a translation of what is said. For an accelerator.

  ./launch.sh prepare covost/fr_en --source FOLDER
  ./launch.sh train configs/speech/covost.py --workdir runs/covost

`:pair=en_de` is English to German, and so on; the CTC branch learns the sentence that is read, the decoder its translation (`:direct`: a
decoder alone).
"""

from configs.smoke import smoke
from configs.speech.keypad_tones import recipe
from configs.speech.librispeech import ENCODER, large
from mmlm.config import default_config, parse_arg


def get_config(arg=''):
  args = parse_arg(arg, smoke=False, pair='fr_en', direct=False)
  if args.direct:
    head = {'head': 'transformer_decoder'}
  else:
    head = {'ctc_labels': 'transcript'}
  config = large(recipe(default_config(), ENCODER, layers=6, **head))
  config.task = 'speech_translation'
  config.data.name = f'covost/{args.pair}'
  config.data.fields = {
    'id': 'id',
    'audio': 'audio',
    'targets': 'translation',
    'speaker': 'speaker',
  } | ({} if args.direct else {'transcript': 'sentence'})
  config.data.splits = {'train': 'train', 'valid': 'dev', 'test': ('test',)}
  config.decoding.ctc_weight = 0.0  # the branch writes the source language
  config.tokenizer.lowercase = False
  config.train.monitor = 'bleu'
  config.decoding.length_penalty = 1.0
  return smoke(config) if args.smoke else config
