"""The 6,993 / 242 / 243 pairs of Multi30k with photos, text alone and each fusion: no published number stands beside them."""

from experiments import multi30k_de

CONFIG = 'configs/translation/multi30k_photos.py'
DATASET = 'Multi30k with photos, en-de'
METRICS = multi30k_de.METRICS | {'bleu_words': ('BLEU as published', 1, None, None)}
