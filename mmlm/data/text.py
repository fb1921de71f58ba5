"""What stands between the texts of a data set and a tokenizer: Moses' rules of a language, and back.

Moses' rules (Koehn et al. 2007) are those of sacremoses: punctuation normalised, then words and punctuation apart.
"""

import functools
from collections.abc import Iterable

from sacremoses import MosesDetokenizer, MosesPunctNormalizer, MosesTokenizer

from mmlm.data.tokenizers.tokenizer import Tokenizer
from mmlm.utils.choices import one_of

MASK = '\ufffc'  # stands for a masked word
LANGUAGES = (
  'as',
  'bn',
  'ca',
  'cs',
  'de',
  'el',
  'en',
  'es',
  'et',
  'fi',
  'fr',
  'ga',
  'gu',
  'hi',
  'hu',
  'is',
  'it',
  'kn',
  'lt',
  'lv',
  'ml',
  'mni',
  'mr',
  'nl',
  'or',
  'pa',
  'pl',
  'pt',
  'ro',
  'ru',
  'sk',
  'sl',
  'sv',
  'ta',
  'te',
  'tdt',
  'yue',
  'zh',
)


def check_language(language: str) -> None:
  one_of('language code', language, LANGUAGES)


@functools.cache
def _rules(language: str):
  """The normaliser, tokenizer and detokenizer of a language code."""
  check_language(language)
  return MosesPunctNormalizer(language), MosesTokenizer(language), MosesDetokenizer(language)


def moses_tokenize(text: str, language: str) -> str:
  """Normalised, words and punctuation separated by one space; the case stays, nothing is escaped."""
  normalizer, tokenizer, _ = _rules(language)
  return ' '.join(tokenizer.tokenize(normalizer.normalize(text), escape=False))


def moses_detokenize(text: str, language: str) -> str:
  return _rules(language)[2].detokenize(text.split())


class Texts:
  """One side of the texts of a task: a tokenizer, with Moses' rules of `language` around it ('' for none)."""

  def __init__(self, tokenizer: Tokenizer, language: str = ''):
    self.tokenizer = tokenizer
    self.language = language

  def encode_batch(self, texts) -> list[list[int]]:
    return self.tokenizer.encode_batch(words(text, self.language) for text in texts)

  def encode_inputs(self, texts) -> list[list[int]]:
    """What an encoder reads: with the end and, where the tokenizer has one, the start; [] for an empty text."""
    if not any(texts):
      return [[] for _ in texts]
    begin = [self.tokenizer.bos_id] * self.tokenizer.encoder_starts_with_bos
    end = self.tokenizer.eos_id
    return [[*begin, *ids, end] if ids else [] for ids in self.encode_batch(texts)]

  def encode_targets(self, texts: Iterable[str]) -> list[list[int]]:
    """Returns ids with the end token."""
    end = self.tokenizer.eos_id
    return [[*ids, end] for ids in self.encode_batch(texts)]

  def decode_batch(self, rows) -> list[str]:
    """Token ids -> what the model wrote: with a language, separated words."""
    return self.tokenizer.decode_batch(rows)

  def decode_pieces(self, tokens) -> list[str]:
    """What each token adds to the text of those before it; the last of several that make one character adds it, the others ''."""
    pieces = []
    told = ''
    for text in self.decode_batch([tokens[: i + 1] for i in range(len(tokens))]):
      text = text.rstrip('\N{REPLACEMENT CHARACTER}')  # of bytes that are no character yet
      pieces.append(text[len(told) :])
      told = text
    return pieces

  def surface(self, text: str) -> str:
    """What the model wrote -> what a person reads: words in their usual case and joined."""
    if self.language:
      return moses_detokenize(self.tokenizer.truecase(text), self.language)
    return text


def words(text: str, language: str) -> str:
  if language:
    return moses_tokenize(text, language)
  return text
