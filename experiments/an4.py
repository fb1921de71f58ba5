"""AN4, official split, from the given cepstra.

The published numbers are from the waveforms, with filterbanks and speed perturbation.
"""

from experiments.rows import Row

CONFIG = 'configs/speech/an4.py'
DATASET = 'AN4'
SPLIT = 'test'
METRICS = {
  'wer': ('WER, %', 1, 7.4, 'ESPnet Transformer, from waveforms'),
  'cer': ('CER, %', 1, 3.6, 'ESPnet Transformer, from waveforms'),
}
ROWS = {'ctc': Row(CONFIG)}
