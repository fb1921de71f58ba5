"""Generated numerals with a masked word: no published number stands beside them."""

CONFIG = 'configs/translation/numerals.py'
DATASET = 'generated numerals'
METRICS = {'exact_match': ('exact, %', 100, None, None), 'chrf': ('chrF', 1, None, None)}
