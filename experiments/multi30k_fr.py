"""Multi30k from English into French, text alone: the published number is of test_2016."""

from experiments import multi30k_de
from experiments.rows import Row

CONFIG = 'configs/translation/multi30k.py:target=fr'
DATASET = 'Multi30k en-fr'
SPLIT = 'test_2016'
METRICS = multi30k_de.METRICS | {
  'bleu_words': ('BLEU as published', 1, 61.80, 'Transformer-Tiny, Wu et al. 2021 (as reported)')
}
ROWS = {'annealed': Row(f'{CONFIG},annealed', splits=multi30k_de.TESTS)}
