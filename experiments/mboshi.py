"""Mboshi speech into French three ways (cascade, direct, multitask), and its recognition: no published number of this split was found."""

from experiments.rows import Row

CONFIG = 'configs/speech/mboshi.py'
DATASET = 'Mboshi-French'
METRICS = {
  'bleu': ('sacreBLEU', 1, None, None), 'bleu_words': ('BLEU of the tokenised text', 1, None, None), 'chrf': ('chrF', 1, None, None),
  'wer': ('WER, %', 1, None, None), 'cer': ('CER, %', 1, None, None),
}  # fmt: skip
ROWS = {
  'recognition': Row(f'{CONFIG}:task=recognition', 'recognition'),
  'direct': Row(f'{CONFIG}:task=translation', 'direct'),
  'multitask': Row(f'{CONFIG}:task=multitask', 'multitask'),
  'started': Row(f'{CONFIG}:task=multitask,start={{start}}', 'multitask, from the encoder of the recognition', start='recognition'),
  'text': Row(f'{CONFIG}:task=text', 'from the text', texts_of='recognition'),  # of recognised texts: the cascade
}
