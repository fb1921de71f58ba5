"""The forms in which metrics read predictions (`Metric.view`).

Each function makes hypotheses and references, two lists of N examples, of a predictions file's
rows. `language` is that of the texts, for Moses' tokenization rules.
"""

from mmlm.data.text import words
from mmlm.evaluation.metrics.caption_tokens import tokenize_caption
from mmlm.evaluation.metrics.metric import Pair, References, Rows, Texts


def _hypotheses(predictions: Rows) -> Texts:
  return [row['hypothesis'] for row in predictions]


def _references(predictions: Rows) -> References:
  return [row['references'] for row in predictions]


def surface(predictions: Rows, language: str = '') -> Pair:
  """Returns texts as a person reads them."""
  return _hypotheses(predictions), _references(predictions)


def labels(predictions: Rows, language: str = '') -> Pair:
  """Returns names of classes."""
  return _hypotheses(predictions), _references(predictions)


def confidences(predictions: Rows, language: str = '') -> Pair:
  """Returns pairs of the predicted class and its probability, and names of classes."""
  pairs = [(row['hypothesis'], row['score']) for row in predictions]
  return pairs, _references(predictions)


def values(predictions: Rows, language: str = '') -> Pair:
  """Returns predicted numbers, and lists of one label."""
  return [row['score'] for row in predictions], _references(predictions)


def caption_tokens(predictions: Rows, language: str = '') -> Pair:
  """Returns lists of tokens as coco-caption counts them."""
  hypotheses = [tokenize_caption(text) for text in _hypotheses(predictions)]
  references = []
  for group in _references(predictions):
    references.append([tokenize_caption(text) for text in group])
  return hypotheses, references


def moses_words(predictions: Rows, language: str = '') -> Pair:
  """Returns Moses' words in lower case, joined by spaces."""
  hypotheses = []
  for row in predictions:
    # A predictions file of another program may lack the words as the model wrote them.
    if 'words' in row:
      hypotheses.append(row['words'].lower())
    else:
      hypotheses.append(lower_words(row['hypothesis'], language))
  references = []
  for group in _references(predictions):
    references.append([lower_words(text, language) for text in group])
  return hypotheses, references


def token_nats(predictions: Rows, language: str = '') -> Pair:
  """Returns the whole rows of a language model's predictions, twice."""
  return predictions, predictions


def lower_words(text: str, language: str) -> str:
  """Returns the words of a text by Moses' rules, in lower case, joined by spaces.

  The text is lower-cased before the rules, as published: a capitalized word with a full stop may
  pass for an abbreviation ('Bart.').
  """
  return words(text.lower(), language)
