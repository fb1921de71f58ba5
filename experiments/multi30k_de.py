"""Multi30k from English into German, text alone: the published number is of test_2016."""

from experiments.rows import Row

CONFIG = 'configs/translation/multi30k.py'
DATASET = 'Multi30k en-de'
SPLIT = 'test_2016'
METRICS = {
  'bleu_words': ('BLEU as published', 1, 41.02, 'Transformer-Tiny, Wu et al. 2021'),
  'bleu': ('sacreBLEU', 1, None, None),
  'chrf': ('chrF', 1, None, None),
  'ter': ('TER', 1, None, None),
}
TESTS = 'test_2016', 'test_2017', 'test_coco', 'valid'
ROWS = {
  'pre_norm': Row(CONFIG, splits=TESTS),
  'annealed': Row(f'{CONFIG}:annealed', 'annealed, 40 epochs', splits=TESTS),
}
