"""Generated numerals with a masked word: no published number stands beside them."""

from experiments.rows import Row

CONFIG = 'configs/translation/numerals.py'
DATASET = 'generated numerals'
METRICS = {'exact_match': ('exact, %', 100, None, None), 'chrf': ('chrF', 1, None, None)}
FUSIONS = 'concatenation', 'gated', 'selective', 'bottleneck', 'resampler'
ROWS = {fusion: Row(f'{CONFIG}:fusion={fusion}', fusion, ablate=True) for fusion in FUSIONS} | {
  'text': Row(f'{CONFIG}:modalities=text', 'text alone'),
}
