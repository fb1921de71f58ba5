"""SST-2, GLUE's dev split.

The published number is of MiniLM-L6-H384, whose sizes our encoder has.
"""

from experiments.rows import Row

CONFIG = 'configs/sentiment/bert_sst2.py'
DATASET = 'SST-2'
SPLIT = 'dev'
METRICS = {
  'accuracy': ('accuracy, %', 100, 91.5, 'MiniLM-L6-H384, Wang et al. 2020'),
  'macro_f1': ('macro F1, %', 100, None, None),
  'calibration_error': ('calibration error, %', 100, None, None),
}
ROWS = {'bert': Row(CONFIG, 'fine-tuned'), 'lora': Row(f'{CONFIG}:lora=8', 'LoRA of rank 8')}
