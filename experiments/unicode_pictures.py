"""Generated pictures of characters: no published number stands beside them."""

from experiments.rows import Row

CONFIG = 'configs/captioning/unicode_pictures.py'
DATASET = 'generated pictures of characters'
METRICS = {'exact_match': ('exact name, %', 100, None, None), 'word_f1': ('word F1', 1, None, None)}
ROWS = {'captioner': Row(CONFIG)}
