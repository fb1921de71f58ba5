"""Characters of Tiny Shakespeare.

The published number is nanoGPT's loss, 1.88 nats, of random windows of the same text; ours is of
all of it.

Layers, widths, windows and steps are nanoGPT's. Its positions are learned, ours are rotary, or
learned in the second row.
"""

from experiments.rows import Row

CONFIG = 'configs/language_model/tiny_shakespeare.py'
DATASET = 'Tiny Shakespeare'
SPLIT = 'valid'
METRICS = {
  'bits_per_character': ('bits a character', 1, None, None),
  'nats_per_character': ('nats a character', 1, 1.88, 'nanoGPT on a CPU'),
}
ROWS = {
  'cpu': Row(CONFIG, runs=3),
  'learned': Row(CONFIG, 'learned positions', {'model.head.positions': 'learned'}, runs=3),
}
