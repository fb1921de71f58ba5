"""Generated sentiment that needs text, picture and sound: no published number stands beside it."""

from experiments.rows import Row

CONFIG = 'configs/sentiment/generated.py'
DATASET = 'generated three modalities'
METRICS = {'accuracy': ('accuracy, %', 100, None, None)}
FUSIONS = 'concatenation', 'cross_attention', 'bottleneck', 'tensor', 'low_rank', 'late'
ROWS = {fusion: Row(f'{CONFIG}:fusion={fusion}', fusion, ablate=True) for fusion in FUSIONS}
