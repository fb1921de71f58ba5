"""Generated sentiment that needs text, picture and sound: no published number stands beside it."""

from experiments.rows import Row
from mmlm.models.fusion import FUSIONS

CONFIG = 'configs/sentiment/generated.py'
DATASET = 'generated three modalities'
METRICS = {'accuracy': ('accuracy, %', 100, None, None)}
PAIRS = 'text+image', 'text+audio', 'image+audio'
ROWS = {fusion: Row(f'{CONFIG}:fusion={fusion}', fusion, ablate=True) for fusion in FUSIONS} | {
  pair: Row(f'{CONFIG}:fusion=tensor,modalities={pair}', f'tensor of {pair}') for pair in PAIRS
}
