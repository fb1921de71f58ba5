"""Multi30k from English into French, text alone: the published number is of test_2016."""

CONFIG = 'configs/translation/multi30k.py:target=fr'
DATASET = 'Multi30k en-fr'
SPLIT = 'test_2016'
METRICS = {
  'bleu_words': ('BLEU as published', 1, 61.80, 'Transformer-Tiny, Wu et al. 2021 (as reported)'),
  'bleu': ('sacreBLEU', 1, None, None),
  'chrf': ('chrF', 1, None, None),
  'ter': ('TER', 1, None, None),
}
