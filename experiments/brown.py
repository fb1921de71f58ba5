"""Words of the Brown corpus by Transformer and LSTM, one vocabulary; there is no published number of this split."""

from experiments.rows import Row

CONFIG = 'configs/language_model/brown.py'
DATASET = 'Brown'
SPLIT = 'test'
METRICS = {'perplexity_word': ('perplexity a word', 1, None, None)}
ROWS = {
  'transformer': Row(f'{CONFIG}:model=transformer', 'Transformer', runs=3, splits=('valid', 'test')),
  'lstm': Row(f'{CONFIG}:model=lstm', 'LSTM', runs=3, splits=('valid', 'test')),
}
