"""CMU-MOSI on its standard split, from the transcript or with the sound beside it."""

from experiments.rows import Row

CONFIG = 'configs/sentiment/bert_mosi.py'
DATASET = 'CMU-MOSI'
METRICS = {
  'mae': ('MAE', 1, None, None),
  'pearson': ("Pearson's r", 1, None, None),
  'acc_2_non0': ('Acc-2 without zeros, %', 100, None, None),
  'f1_non0': ('F1 without zeros, %', 100, None, None),
  'acc_2_has0': ('Acc-2 with zeros, %', 100, None, None),
  'acc_7': ('Acc-7, %', 100, None, None),
  'acc_5': ('Acc-5, %', 100, None, None),
}
ROWS = {
  'text': Row(CONFIG, 'text', runs=3),
  'text_audio': Row(
    f'{CONFIG}:modalities=text+audio,fusion=adaptation_gate', 'text and sound', runs=3, ablate=True
  ),
}
