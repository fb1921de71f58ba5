"""Sentences of film reviews in ten folds; the published number is of random word vectors."""

CONFIG = 'configs/sentiment/cnn_mr.py'
DATASET = 'MR'
FOLDS = 'mean of 10 folds'
METRICS = {'accuracy': ('accuracy, %', 100, 75.9, 'CNN-rand, Kim 2014, as reported')}
