"""Words of the Brown corpus by Transformer and LSTM, one vocabulary; there is no published number of this split."""

CONFIG = 'configs/language_model/brown.py'
DATASET = 'Brown'
SPLIT = 'test'
METRICS = {'perplexity_word': ('perplexity a word', 1, None, None)}
