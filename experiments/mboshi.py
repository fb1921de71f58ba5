"""Mboshi speech into French three ways (cascade, direct, multitask), and its recognition.

No published number of this split was found.
"""

from experiments.rows import Row

CONFIG = 'configs/speech/mboshi.py'
DATASET = 'Mboshi-French'
METRICS = {
  'bleu': ('sacreBLEU', 1, None, None),
  'chrf': ('chrF', 1, None, None),
  'wer': ('WER, %', 1, None, None),
  'cer': ('CER, %', 1, None, None),
}
SPLITS = ('valid', 'test')
ROWS = {
  'recognition': Row(f'{CONFIG}:task=recognition', 'recognition', runs=3, splits=SPLITS),
  'direct': Row(f'{CONFIG}:task=translation', 'direct', splits=SPLITS),
  'multitask': Row(f'{CONFIG}:task=multitask', 'multitask', splits=SPLITS),
  'started': Row(
    f'{CONFIG}:task=multitask,start={{start}}',
    'multitask, encoder of the recognition',
    splits=SPLITS,
    start='recognition',
  ),
  # Of recognised texts: the cascade.
  'text': Row(
    f'{CONFIG}:task=text',
    'from the text',
    runs=3,
    splits=SPLITS,
    texts_of='recognition',
    against='multitask',
  ),
}
