"""The 6,993 / 242 / 243 pairs of Multi30k with photos, text alone and each fusion.

No published number stands beside them.
"""

from experiments import multi30k_de
from experiments.rows import Row

CONFIG = 'configs/translation/multi30k_photos.py'
DATASET = 'Multi30k with photos, en-de'
METRICS = multi30k_de.METRICS | {'bleu_words': ('BLEU as published', 1, None, None)}
FUSIONS = 'selective', 'gated', 'concatenation', 'bottleneck', 'resampler'
ROWS = {
  'base': Row(f'{CONFIG}:modalities=text', 'text alone, 30 epochs', runs=3),
  'text': Row(f'{CONFIG}:modalities=text,start={{start}}', 'text alone', runs=3, start='base'),
} | {
  fusion: Row(
    f'{CONFIG}:fusion={fusion},start={{start}}',
    fusion,
    runs=3,
    start='base',
    against='text',
    ablate=True,
  )
  for fusion in FUSIONS
}
