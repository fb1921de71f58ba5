"""CMU-MOSI, split of bc-LSTM, where inputs are missing at test.

With and without leaving some out in training.

No published number stands beside it. The curves are in the runs' reports:
`./launch.sh report RUN --against OTHER`.
"""

from experiments.rows import Row

CONFIG = 'configs/sentiment/mosi_context.py'
DATASET = 'CMU-MOSI, split of bc-LSTM'
METRICS = {
  'accuracy': ('accuracy, %', 100, None, None),
  'weighted_f1': ('weighted F1, %', 100, None, None),
}
ROWS = {
  'plain': Row(CONFIG, 'nothing left out in training', runs=3, ablate=True),
  'dropout': Row(
    CONFIG,
    'each input left out in 3 of 10',
    {'model.modality_dropout': '0.3'},
    runs=3,
    ablate=True,
    against='plain',
  ),
}
