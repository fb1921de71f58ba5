"""The 6,993 / 242 / 243 pairs of Multi30k with photos, text alone and each fusion: no published number stands beside them."""

CONFIG = 'configs/translation/multi30k_photos.py'
DATASET = 'Multi30k with photos, en-de'
METRICS = {
  'bleu_words': ('BLEU as published', 1, None, None),
  'bleu': ('sacreBLEU', 1, None, None),
  'chrf': ('chrF', 1, None, None),
  'ter': ('TER', 1, None, None),
}
