"""Generated sentiment that needs text, picture and sound: no published number stands beside it."""

CONFIG = 'configs/sentiment/generated.py'
DATASET = 'generated three modalities'
METRICS = {'accuracy': ('accuracy, %', 100, None, None)}
