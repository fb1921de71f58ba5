"""Mboshi speech into French three ways (cascade, direct, multitask), and its recognition: no published number of this split was found."""

CONFIG = 'configs/speech/mboshi.py'
DATASET = 'Mboshi-French'
METRICS = {
  'bleu': ('sacreBLEU', 1, None, None), 'bleu_words': ('BLEU of the tokenised text', 1, None, None), 'chrf': ('chrF', 1, None, None),
  'wer': ('WER, %', 1, None, None), 'cer': ('CER, %', 1, None, None),
}  # fmt: skip
