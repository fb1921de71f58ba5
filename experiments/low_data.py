"""A quarter of SST-2's training phrases, from a BERT that has learned masked words of all of them.

And from random parameters.

Both read the same pieces. The masked model is small (4 layers, D 128) and has read no other text;
each seed has one of its own.
"""

from experiments.rows import Row

CONFIG = 'configs/sentiment/low_data.py'
MASKED = 'configs/language_model/masked.py:set=sst2,field=text,valid=dev,dim=128'
DATASET = 'a quarter of SST-2'
METRICS = {
  'accuracy': ('accuracy, %', 100, None, None),
  'masked_accuracy': ('masked words that are found, %', 100, None, None),
}
ROWS = {
  'masked': Row(MASKED, 'masked words', {'train.duration': '10 epochs'}, runs=3),
  'random': Row(
    f'{CONFIG}:like={{start}},dim=128', 'from random parameters', runs=3, start='masked'
  ),
  'pretrained': Row(
    f'{CONFIG}:start={{start}},dim=128',
    'from masked words',
    runs=3,
    start='masked',
    against='random',
  ),
}
