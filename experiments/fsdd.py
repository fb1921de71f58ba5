"""Spoken digits, FSDD's official split.

The word is written in characters; it is correct or not.
"""

from experiments.rows import Row

CONFIG = 'configs/speech/fsdd.py'
DATASET = 'FSDD'
METRICS = {
  'exact_match': ('accuracy, %', 100, None, None),
  'wer': ('WER, %', 1, None, None),
  'cer': ('CER, %', 1, None, None),
}
ROWS = {'joint': Row(CONFIG)}
