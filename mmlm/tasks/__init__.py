"""Tasks: which fields they read, their loss, how they decode, their metrics. `TASKS` maps the names of configs to them."""

from mmlm.tasks.generation import TextGeneration

TASKS = {
  'captioning': TextGeneration(metrics=('bleu_1', 'bleu_2', 'bleu_3', 'bleu_4', 'rouge_l', 'cider_d', 'meteor')),
  'translation': TextGeneration(metrics=('bleu_words', 'bleu', 'chrf', 'ter')),
}
