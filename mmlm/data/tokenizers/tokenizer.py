"""Tokenizers trained on the texts of a run and saved with it: one JSON file holds all that is needed.

Kinds: 'bpe' (byte-level, knows every text), 'subword' (BPE of words that stand between spaces, Sennrich et al. 2016),
'unigram' (Kudo 2018), 'word' (split at spaces and punctuation), 'char'. Ids 0 to 3 are <pad>, <bos>, <eos>, <unk>.
`exact` ones lose nothing of a text: 'char' and 'bpe' keep every space and line end, the 'word's are what stands between spaces.
"""

import collections
import functools
import hashlib
import io
import itertools
import json
import pathlib

import tokenizers as hf
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from mmlm.utils.choices import nearest
from mmlm.utils.errors import UserError
from mmlm.utils.run_dir import write_atomic

SPECIALS = (
  '< pad >',
  '< bos >',
  '< eos >',
  '< unk >',
)  # with spaces, so that none is a piece of text
PAD, BOS, EOS, UNK = range(4)
MASK = '< mask >'  # stands for a token that is to be found, where a tokenizer has been asked for it
_WORD_END = '</w>'
_BYTES = pre_tokenizers.ByteLevel.alphabet()


# kind: (pre-tokenizer, decoder; None joins with spaces).
_KINDS = {
  'bpe': (pre_tokenizers.ByteLevel(add_prefix_space=True), decoders.ByteLevel()),
  'subword': (pre_tokenizers.WhitespaceSplit(), decoders.BPEDecoder(_WORD_END)),
  'unigram': (pre_tokenizers.Metaspace(), decoders.Metaspace()),
  'word': (
    pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()]),
    None,
  ),
  'char': (pre_tokenizers.Split(hf.Regex('(?m).'), 'isolated'), decoders.Fuse()),
}
_EXACT = {
  'bpe': (pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()),
  'word': (pre_tokenizers.WhitespaceSplit(), None),
  'char': _KINDS['char'],
}


class Tokenizer:
  """Text to ids and back; made by `train_tokenizer` or `Tokenizer.load`.

  `casing`: {lower-cased word: how it is usually written}, of a tokenizer that lower-cases.
  """

  def __init__(self, kind: str, text: str, casing: dict | None = None):
    self.kind = kind
    self._text = text
    self.casing = casing or {}
    self._hf = hf.Tokenizer.from_str(text)
    self._hf.encode_special_tokens = True  # '<eos>' in a text is text, not an end
    self._prefixed = kind == 'bpe' and json.loads(text)['pre_tokenizer']['add_prefix_space']

  def __reduce__(self):
    return Tokenizer, (self.kind, self._text, self.casing)

  @property
  def fingerprint(self) -> str:
    """Tells this vocabulary from others, even of the same size."""
    return hashlib.sha256(
      repr((self.kind, self._text, sorted(self.casing.items()))).encode()
    ).hexdigest()[:16]

  @property
  def vocab_size(self) -> int:
    return self._hf.get_vocab_size()

  @property
  def pieces(self) -> list[str]:
    """What each id stands for."""
    return [self._hf.id_to_token(i) for i in range(self.vocab_size)]

  @property
  def mask_id(self) -> int | None:
    """The id that stands for a masked token; None without one."""
    return next((i for i in map(self._hf.token_to_id, (MASK, '[MASK]')) if i is not None), None)

  @property
  def whole(self) -> bool:
    """Whether its ids tell the text, but for spaces at its ends (and characters that it does not know)."""
    return self.kind in ('char', 'bpe', 'gpt2') and 'Lowercase' not in json.dumps(
      self.to_dict()['normalizer']
    )

  def encode_places(self, text: str) -> tuple[list[int], list[int]]:
    """Ids without <bos> and <eos>, and where in the text each ends, in characters."""
    found = self._hf.encode(text, add_special_tokens=False)
    return found.ids, [end for _, end in found.offsets]

  def encode(self, text: str) -> list[int]:
    """Ids without <bos> and <eos>."""
    return self._hf.encode(text, add_special_tokens=False).ids

  def encode_batch(self, texts) -> list[list[int]]:
    """`encode` of each text, on all cores."""
    return [row.ids for row in self._hf.encode_batch_fast(list(texts), add_special_tokens=False)]

  def decode(self, ids) -> str:
    """Text of the ids up to the first <eos>, without special tokens."""
    return self.decode_batch([ids])[0]

  def decode_batch(self, rows) -> list[str]:
    rows = [list(itertools.takewhile(lambda i: i != EOS, map(int, row))) for row in rows]
    texts = self._hf.decode_batch(rows, skip_special_tokens=True)
    if self._prefixed:
      return [text.removeprefix(' ') for text in texts]
    return texts

  def recase(self, text: str) -> str:
    """Words between spaces as they are usually written, the first with a capital; unchanged where case was never lost."""
    if not self.casing:
      return text
    text = ' '.join(self.casing.get(word, word) for word in text.split())
    return text[:1].upper() + text[1:]

  def to_dict(self) -> dict:
    """What a tokenizer.json of the library `tokenizers` holds."""
    return json.loads(self._text)

  def save(self, path):
    saved = {'kind': self.kind, 'tokenizer': json.loads(self._text), 'casing': self.casing}
    write_atomic(path, json.dumps(saved, ensure_ascii=False) + '\n')

  @classmethod
  def load(cls, path) -> 'Tokenizer':
    """UserError when the file is missing or not a tokenizer."""
    try:
      saved = json.loads(pathlib.Path(path).read_text(encoding='utf-8'))
      return cls(saved['kind'], json.dumps(saved['tokenizer']), saved.get('casing'))
    except Exception as error:  # tokenizers raises a bare Exception on bad content
      raise UserError(f'{path}: not a tokenizer of this project ({error}).') from None


def train_tokenizer(
  texts,
  kind='bpe',
  vocab_size=8000,
  lowercase=False,
  min_frequency=1,
  casing=None,
  exact=False,
  mask=False,
) -> Tokenizer:
  """A tokenizer of at most `vocab_size` ids (4 specials and, for 'bpe', 256 bytes included); the same texts
  give the same one.

  Texts are normalised to NFC, stripped, and lower-cased on request. `min_frequency` is ignored by 'unigram'.
  `exact`: texts are neither normalised nor stripped. `mask`: MASK is one of the ids.
  """
  if kind not in _KINDS:
    raise UserError(
      f'No kind of tokenizer {kind!r}; did you mean {nearest(kind, _KINDS)!r}, of {list(_KINDS)}?'
    )
  if exact and kind not in _EXACT:
    raise UserError(
      f'tokenizer.exact: a tokenizer of kind {kind!r} loses spaces. Choose one of {list(_EXACT)}.'
    )
  least = len(SPECIALS) + mask + (len(_BYTES) if kind == 'bpe' else 1)
  _check_size(kind, vocab_size, least)
  texts = list(texts)
  if not any(text.strip() for text in texts):
    raise UserError("A tokenizer can't be trained: there is no text.")
  model = {
    'bpe': models.BPE(),
    'subword': models.BPE(unk_token=SPECIALS[UNK], end_of_word_suffix=_WORD_END),
  }
  tokenizer = hf.Tokenizer(model.get(kind) or models.WordLevel(unk_token=SPECIALS[UNK]))
  if exact:
    cleaning = []
  else:
    cleaning = [normalizers.NFC(), normalizers.Strip()]
  tokenizer.normalizer = normalizers.Sequence(cleaning + [normalizers.Lowercase()] * lowercase)
  tokenizer.pre_tokenizer, tokenizer.decoder = (_EXACT if exact else _KINDS)[kind]
  options = dict(
    vocab_size=vocab_size,
    min_frequency=min_frequency,
    special_tokens=[*SPECIALS, *[MASK] * mask],
    show_progress=False,
  )
  if kind == 'subword':
    # The trainer numbers what it does not know as special in the order of a hash map: here the last letters of words.
    words = {word for text in texts for word in tokenizer.normalizer.normalize_str(text).split()}
    ends = sorted({word[-1] for word in words})
    options['special_tokens'] += [letter + _WORD_END for letter in ends]
    _check_size(
      f'{kind} of these texts', vocab_size, len(SPECIALS) + len(ends) + len(set().union(*words))
    )
  if kind == 'unigram':
    tokenizer.model = _unigram(
      [tokenizer.normalizer.normalize_str(text) for text in texts], vocab_size, mask
    )
    tokenizer.add_special_tokens(list(SPECIALS))
  else:
    train = {
      'bpe': functools.partial(trainers.BpeTrainer, initial_alphabet=_BYTES),
      'subword': functools.partial(trainers.BpeTrainer, end_of_word_suffix=_WORD_END),
    }.get(kind, trainers.WordLevelTrainer)
    tokenizer.train_from_iterator(texts, train(**options))
  if tokenizer.get_vocab_size() == len(options['special_tokens']):
    what = {'word': 'word', 'char': 'character'}[kind]
    raise UserError(
      f'tokenizer.min_frequency={min_frequency}: no {what} of the training texts stands in them so often, the vocabulary would be empty.'
    )
  trained = json.loads(tokenizer.to_str())
  trained['added_tokens'] = trained['added_tokens'][: len(SPECIALS)]
  return Tokenizer(kind, json.dumps(trained), casing)


def _check_size(kind: str, vocab_size: int, least: int):
  if vocab_size < least:
    raise UserError(
      f'tokenizer.vocab_size={vocab_size}: a tokenizer of kind {kind} needs at least {least}.'
    )


def usual_casing(texts) -> dict:
  """{lower-cased word: its most frequent form} of words between spaces, where the two differ.

  The first word of a text does not count: its capital says nothing.
  """
  forms = collections.defaultdict(collections.Counter)
  for text in texts:
    for word in text.split()[1:]:
      forms[word.lower()][word] += 1
  usual = {lower: counts.most_common(1)[0][0] for lower, counts in forms.items()}
  return {lower: form for lower, form in usual.items() if form != lower}


def _unigram(texts, vocab_size, mask):
  """Trained by sentencepiece: the trainer of `tokenizers` depends on the order of a hash map and counts
  each word once.
  """
  import sentencepiece

  model = io.BytesIO()
  try:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(texts),
      model_writer=model,
      model_type='unigram',
      vocab_size=vocab_size,
      hard_vocab_limit=False,
      pad_id=PAD,
      bos_id=BOS,
      eos_id=EOS,
      unk_id=UNK,
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
  trained = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
  pieces = []
  for i in range(trained.get_piece_size()):
    pieces.append((trained.id_to_piece(i), trained.get_score(i)))
  never = [(MASK, min(score for _, score in pieces) - 100)] * mask  # no text has it
  return models.Unigram(
    [(name, 0.0) for name in SPECIALS] + never + pieces[len(SPECIALS) :], unk_id=UNK
  )
