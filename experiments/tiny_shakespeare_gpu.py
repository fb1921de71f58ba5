"""Characters of Tiny Shakespeare at nanoGPT's size for a GPU: its published loss is the best of random windows; ours is of all of the text."""

from experiments.rows import Row

CONFIG = 'configs/language_model/tiny_shakespeare.py:size=gpu'
DATASET = 'Tiny Shakespeare'
SPLIT = 'valid'
METRICS = {
  'bits_per_character': ('bits a character', 1, None, None),
  'nats_per_character': ('nats a character', 1, 1.4697, 'nanoGPT on a GPU'),
}
ROWS = {'gpu': Row(CONFIG)}
