"""Words of the Brown corpus by Transformer and LSTM, one vocabulary.

No published number of this split is known.

The LSTM's rate and dropout were chosen on validation, a seed each, commit 6ee90f9: perplexity after
four epochs of six 202.1 with optimizer.learning_rate=2e-3, model.dropout=0.3,
model.head.weight_drop=0.2 and input_dropout=layer_dropout=0.2; 157.7 with 5e-3, 0.1, 0 and 0.1;
154.0 with 1e-2 and these. The Transformer's are as they were first set.
"""

from experiments.rows import Row

CONFIG = 'configs/language_model/brown.py'
DATASET = 'Brown'
SPLIT = 'test'
METRICS = {'perplexity_word': ('perplexity a word', 1, None, None)}
ROWS = {
  'transformer': Row(
    f'{CONFIG}:model=transformer', 'Transformer', runs=3, splits=('valid', 'test')
  ),
  'lstm': Row(f'{CONFIG}:model=lstm', 'LSTM', runs=3, splits=('valid', 'test')),
}
