"""Trains a tokenizer on texts.

Kinds: 'bpe' (byte-level, encodes every text), 'subword' (BPE within words between spaces, Sennrich
et al. 2016), 'unigram' (Kudo 2018), 'word' (split at spaces and punctuation), 'char'. Ids 0 to 3
are the special tokens.

An `exact` tokenizer restores texts: 'char' and 'bpe' keep every space and line end, 'word' keeps
what stands between spaces.
"""

import collections
import io
import json
from collections.abc import Iterable
from typing import Any, NamedTuple

import tokenizers as hf
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from mmlm.data.tokenizers.special_tokens import SpecialTokens
from mmlm.data.tokenizers.tokenizer import MASK_PIECES, Tokenizer
from mmlm.utils.choices import nearest
from mmlm.utils.errors import UserError

# With spaces, so that none of them is a piece of text.
SPECIAL_PIECES = ('< pad >', '< bos >', '< eos >', '< unk >')
MASK_PIECE = MASK_PIECES[0]
UNKNOWN_PIECE = SPECIAL_PIECES[-1]
WORD_END = '</w>'
BYTES = pre_tokenizers.ByteLevel.alphabet()
NEVER_DRAWN = 100  # the score of a unigram mask lies this far below the least likely piece


class Splitting(NamedTuple):
  """How a kind of tokenizer splits a text, and how it joins the pieces."""

  pre_tokenizer: Any
  decoder: Any  # None joins with spaces


SPLITTINGS = {
  'bpe': Splitting(pre_tokenizers.ByteLevel(add_prefix_space=True), decoders.ByteLevel()),
  'subword': Splitting(pre_tokenizers.WhitespaceSplit(), decoders.BPEDecoder(WORD_END)),
  'unigram': Splitting(pre_tokenizers.Metaspace(), decoders.Metaspace()),
  'word': Splitting(
    pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()]),
    None,
  ),
  'char': Splitting(pre_tokenizers.Split(hf.Regex('(?m).'), 'isolated'), decoders.Fuse()),
}
EXACT_SPLITTINGS = {
  'bpe': Splitting(pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()),
  'word': Splitting(pre_tokenizers.WhitespaceSplit(), None),
  'char': SPLITTINGS['char'],
}


def train_tokenizer(
  texts: Iterable[str],
  kind: str = 'bpe',
  vocab_size: int = 8000,
  lowercase: bool = False,
  min_frequency: int = 1,
  casing: dict[str, str] | None = None,
  exact: bool = False,
  mask: bool = False,
) -> Tokenizer:
  """Trains a tokenizer; the same texts give the same one.

  Args:
    texts: normalised to NFC and stripped, unless `exact`.
    vocab_size: the most ids, 4 special tokens and, for 'bpe', 256 bytes included.
    lowercase: lower-cases texts.
    min_frequency: how often a piece occurs at least; ignored by 'unigram'.
    casing: see `Tokenizer`.
    exact: texts are neither normalised nor stripped.
    mask: one id is a mask token.

  Raises:
    UserError: an unknown kind, no text, or a vocabulary that is too small.
  """
  splitting = _splitting(kind, exact)
  smallest = len(SPECIAL_PIECES) + mask + (len(BYTES) if kind == 'bpe' else 1)
  _check_size(kind, vocab_size, smallest)
  texts = list(texts)
  if not any(text.strip() for text in texts):
    raise UserError("A tokenizer can't be trained: there is no text.")
  tokenizer = hf.Tokenizer(_empty_model(kind))
  tokenizer.normalizer = _normalizer(lowercase, exact)
  tokenizer.pre_tokenizer = splitting.pre_tokenizer
  tokenizer.decoder = splitting.decoder
  special_pieces = [*SPECIAL_PIECES, *[MASK_PIECE] * mask]
  if kind == 'subword':
    special_pieces += _word_ends(texts, tokenizer, vocab_size)
  if kind == 'unigram':
    normalized = [tokenizer.normalizer.normalize_str(text) for text in texts]
    tokenizer.model = _train_unigram(normalized, vocab_size, mask)
    tokenizer.add_special_tokens(list(SPECIAL_PIECES))
  else:
    trainer = _trainer(kind, vocab_size, min_frequency, special_pieces)
    tokenizer.train_from_iterator(texts, trainer)
  if tokenizer.get_vocab_size() == len(special_pieces):
    unit = {'word': 'word', 'char': 'character'}[kind]
    raise UserError(
      f'tokenizer.min_frequency={min_frequency}: no {unit} of the training texts occurs so often, '
      'the vocabulary would be empty. Choose a smaller one.'
    )
  content = json.loads(tokenizer.to_str())
  # Only these are special when decoding: not the mask, nor the ends of words.
  content['added_tokens'] = content['added_tokens'][: len(SPECIAL_PIECES)]
  return Tokenizer(kind, json.dumps(content), casing)


def _splitting(kind: str, exact: bool) -> Splitting:
  if kind not in SPLITTINGS:
    suggestion = nearest(kind, SPLITTINGS)
    raise UserError(
      f'tokenizer.kind={kind!r}: no such kind; did you mean {suggestion!r}? '
      f'Choose one of {list(SPLITTINGS)}.'
    )
  if not exact:
    return SPLITTINGS[kind]
  if kind not in EXACT_SPLITTINGS:
    raise UserError(
      f'tokenizer.exact: a tokenizer of kind {kind!r} loses spaces. '
      f'Choose one of {list(EXACT_SPLITTINGS)}.'
    )
  return EXACT_SPLITTINGS[kind]


def _check_size(
  kind: str,
  vocab_size: int,
  smallest: int,
) -> None:
  if vocab_size < smallest:
    raise UserError(
      f'tokenizer.vocab_size={vocab_size}: a tokenizer of kind {kind} needs at least {smallest}.'
    )


def _empty_model(kind: str) -> models.Model:
  if kind == 'bpe':
    return models.BPE()
  if kind == 'subword':
    return models.BPE(unk_token=UNKNOWN_PIECE, end_of_word_suffix=WORD_END)
  return models.WordLevel(unk_token=UNKNOWN_PIECE)


def _normalizer(lowercase: bool, exact: bool) -> normalizers.Sequence:
  steps = []
  if not exact:
    steps += [normalizers.NFC(), normalizers.Strip()]
  if lowercase:
    steps.append(normalizers.Lowercase())
  return normalizers.Sequence(steps)


def _word_ends(
  texts: list[str],
  tokenizer: hf.Tokenizer,
  vocab_size: int,
) -> list[str]:
  """Returns the last letters of words, as pieces.

  The trainer numbers what it does not know as special in the order of a hash map, these among them.
  """
  words = set()
  for text in texts:
    words.update(tokenizer.normalizer.normalize_str(text).split())
  letters = sorted({word[-1] for word in words})
  characters = set().union(*words)
  smallest = len(SPECIAL_PIECES) + len(letters) + len(characters)
  _check_size('subword of these texts', vocab_size, smallest)
  return [letter + WORD_END for letter in letters]


def _trainer(
  kind: str, vocab_size: int, min_frequency: int, special_pieces: list[str]
) -> trainers.Trainer:
  options: dict[str, Any] = dict(
    vocab_size=vocab_size,
    min_frequency=min_frequency,
    special_tokens=special_pieces,
    show_progress=False,
  )
  if kind == 'bpe':
    return trainers.BpeTrainer(initial_alphabet=BYTES, **options)
  if kind == 'subword':
    return trainers.BpeTrainer(end_of_word_suffix=WORD_END, **options)
  return trainers.WordLevelTrainer(**options)


def _train_unigram(
  texts: list[str],
  vocab_size: int,
  mask: bool,
) -> models.Unigram:
  """Trains by sentencepiece.

  The trainer of `tokenizers` depends on the order of a hash map and counts each word once.
  """
  import sentencepiece

  ids = SpecialTokens()
  buffer = io.BytesIO()
  try:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(texts),
      model_writer=buffer,
      model_type='unigram',
      vocab_size=vocab_size,
      hard_vocab_limit=False,
      pad_id=ids.pad_id,
      bos_id=ids.bos_id,
      eos_id=ids.eos_id,
      unk_id=ids.unk_id,
      character_coverage=1.0,
      normalization_rule_name='identity',
      max_sentence_length=1 << 20,
      num_threads=1,
      minloglevel=2,
    )
  except RuntimeError as error:
    raise UserError(
      f"A unigram tokenizer of {vocab_size} can't be trained on these texts: {error}"
    ) from None
  processor = sentencepiece.SentencePieceProcessor(model_proto=buffer.getvalue())
  pieces = []
  for i in range(processor.get_piece_size()):
    pieces.append((processor.id_to_piece(i), processor.get_score(i)))
  lowest = min(score for _, score in pieces)
  vocabulary = [(piece, 0.0) for piece in SPECIAL_PIECES]
  if mask:
    vocabulary.append((MASK_PIECE, lowest - NEVER_DRAWN))
  vocabulary += pieces[len(SPECIAL_PIECES) :]
  return models.Unigram(vocabulary, unk_id=ids.unk_id)


def usual_casing(texts: Iterable[str]) -> dict[str, str]:
  """Returns {lower-cased word: its most frequent form} where the two differ.

  Words stand between spaces. The first word of a text does not count: it is always capitalised.
  """
  forms = collections.defaultdict(collections.Counter)
  for text in texts:
    for word in text.split()[1:]:
      forms[word.lower()][word] += 1
  casing = {}
  for word, counts in forms.items():
    ((form, _),) = counts.most_common(1)
    if form != word:
      casing[word] = form
  return casing
