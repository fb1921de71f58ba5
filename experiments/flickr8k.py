"""Flickr8k captioning (official split, 5 references), beside published numbers."""

from experiments.rows import Row

CONFIG = 'configs/captioning/flickr8k.py'
DATASET = 'Flickr8k'
XU = 'soft attention, Xu et al. 2015'
# metric: (name in the table, factor, published value, its source)
METRICS = {
  'bleu_1': ('BLEU-1, %', 100, 67.0, XU),
  'bleu_2': ('BLEU-2, %', 100, 44.8, XU),
  'bleu_3': ('BLEU-3, %', 100, 29.9, XU),
  'bleu_4': ('BLEU-4, %', 100, 19.5, XU),
  'rouge_l': ('ROUGE-L, %', 100, None, None),
  'cider_d': ('CIDEr-D', 1, None, None),
  'meteor': ('METEOR, %', 100, None, None),
}
ROWS = {'captioner': Row(CONFIG, greedy=True)}
