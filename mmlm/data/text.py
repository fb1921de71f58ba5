"""Texts of a data set to token ids and back: Moses' rules of a language around a tokenizer.

Moses' rules (Koehn et al. 2007) are those of sacremoses: punctuation is normalised, then words and
punctuation are separated.
"""

import functools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from sacremoses import MosesDetokenizer, MosesPunctNormalizer, MosesTokenizer

from mmlm.data.tokenizers.tokenizer import Tokenizer
from mmlm.utils.choices import one_of

MASK = '\ufffc'  # stands for a masked word
REPLACEMENT = '\N{REPLACEMENT CHARACTER}'  # decoded from bytes that are no whole character
LANGUAGES = tuple(
  [
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
  ]
)


class MosesRules(NamedTuple):
  normalizer: MosesPunctNormalizer
  tokenizer: MosesTokenizer
  detokenizer: MosesDetokenizer


def check_language(language: str) -> None:
  """Raises UserError for a code that Moses' rules do not know."""
  one_of('language code', language, LANGUAGES)


@functools.cache
def _rules(language: str) -> MosesRules:
  check_language(language)
  return MosesRules(
    MosesPunctNormalizer(language), MosesTokenizer(language), MosesDetokenizer(language)
  )


def moses_tokenize(text: str, language: str) -> str:
  """Returns words and punctuation separated by one space; case is kept, nothing is escaped."""
  rules = _rules(language)
  normalized = rules.normalizer.normalize(text)
  return ' '.join(rules.tokenizer.tokenize(normalized, escape=False))


def moses_detokenize(text: str, language: str) -> str:
  """Returns the text of separated words and punctuation."""
  return _rules(language).detokenizer.detokenize(text.split())


def words(text: str, language: str) -> str:
  """Returns `moses_tokenize` of a text; without a language the text as it is."""
  if language:
    return moses_tokenize(text, language)
  return text


class Texts:
  """The input texts of a task, or its answers.

  A tokenizer with Moses' rules of `language` around it; '' for no rules.
  """

  def __init__(
    self,
    tokenizer: Tokenizer,
    language: str = '',
  ):
    self.tokenizer = tokenizer
    self.language = language

  def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
    """Returns the ids of each text."""
    return self.tokenizer.encode_batch(words(text, self.language) for text in texts)

  def encode_inputs(self, texts: Sequence[str]) -> list[list[int]]:
    """Returns ids with the end token and, for BERT, the begin token; [] for an empty text."""
    if not any(texts):
      return [[] for _ in texts]
    begin = [self.tokenizer.bos_id] * self.tokenizer.encoder_starts_with_bos
    sequences = []
    for ids in self.encode_batch(texts):
      sequences.append([*begin, *ids, self.tokenizer.eos_id] if ids else [])
    return sequences

  def encode_targets(self, texts: Iterable[str]) -> list[list[int]]:
    """Returns ids with the end token."""
    return [[*ids, self.tokenizer.eos_id] for ids in self.encode_batch(texts)]

  def decode_batch(self, sequences: Iterable[Iterable[int]]) -> list[str]:
    """Returns the texts of token ids; with a language, words are separated."""
    return self.tokenizer.decode_batch(sequences)

  def decode_pieces(self, tokens: Sequence[int]) -> list[str]:
    """Returns what each token adds to the text of the tokens before it.

    Of several tokens that make one character the last adds it, the others add ''.
    """
    prefixes = [tokens[: i + 1] for i in range(len(tokens))]
    pieces = []
    previous = ''
    for text in self.decode_batch(prefixes):
      text = text.rstrip(REPLACEMENT)
      pieces.append(text[len(previous) :])
      previous = text
    return pieces

  def surface(self, text: str) -> str:
    """Returns a decoded text with words in their usual case and punctuation attached."""
    if not self.language:
      return text
    return moses_detokenize(self.tokenizer.truecase(text), self.language)
