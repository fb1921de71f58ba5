"""The tokenizer of a run, saved with it as one JSON file.

Kinds that are trained here (see train_tokenizer.py): 'bpe', 'subword', 'unigram', 'word', 'char'.
Kinds that come with a pretrained model keep its ids: 'wordpiece' (BERT), 'gpt2'.
"""

import functools
import hashlib
import itertools
import json
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any, cast

import tokenizers as hf

from mmlm.data.tokenizers.special_tokens import DEFAULT_SPECIAL_TOKENS, SpecialTokens
from mmlm.utils.errors import UserError
from mmlm.utils.run_dir import write_atomic

MASK_PIECES = ('< mask >', '[MASK]')  # the name of the mask token: of ours, of BERT's
LOSSLESS_KINDS = ('char', 'bpe', 'gpt2')


class Tokenizer:
  """Maps texts to ids and back; made by `train_tokenizer`, a loader in `pretrained`, or `load`.

  Attributes:
    kind: one of the kinds of the module's docstring.
    casing: {lower-cased word: its usual form}, of a tokenizer that lower-cases.
    special_tokens: the ids of padding, begin, end and unknown.
  """

  def __init__(
    self,
    kind: str,
    text: str,
    casing: dict[str, str] | None = None,
    special_tokens: SpecialTokens = DEFAULT_SPECIAL_TOKENS,
  ):
    """Builds from `text`, the content of a tokenizer.json of the library `tokenizers`."""
    self.kind = kind
    self.casing = casing or {}
    self.special_tokens = special_tokens
    self._text = text
    self._hf = hf.Tokenizer.from_str(text)
    # The name of a special token in a text is text, not the special token.
    self._hf.encode_special_tokens = True
    self._adds_space = kind == 'bpe' and self.to_dict()['pre_tokenizer']['add_prefix_space']

  def __reduce__(self):
    return Tokenizer, (self.kind, self._text, self.casing, self.special_tokens)

  @property
  def pad_id(self) -> int:
    return self.special_tokens.pad_id

  @property
  def bos_id(self) -> int:
    return self.special_tokens.bos_id

  @property
  def eos_ids(self) -> tuple[int, ...]:
    return self.special_tokens.eos_ids

  @property
  def eos_id(self) -> int:
    """Returns the token that targets end with."""
    return self.special_tokens.eos_id

  @property
  def unk_id(self) -> int | None:
    return self.special_tokens.unk_id

  @functools.cached_property
  def mask_id(self) -> int | None:
    """Returns the id of the mask token, None without one."""
    for piece in MASK_PIECES:
      mask_id = self._hf.token_to_id(piece)
      if mask_id is not None:
        return mask_id
    return None

  @property
  def fingerprint(self) -> str:
    """Returns 16 hex digits that differ between vocabularies, even of the same size."""
    content = repr((self.kind, self._text, sorted(self.casing.items())))
    return hashlib.sha256(content.encode()).hexdigest()[:16]

  @property
  def vocab_size(self) -> int:
    return self._hf.get_vocab_size()

  @property
  def pieces(self) -> list[str]:
    """Returns the name of each id, in order of the ids."""
    return [cast(str, self._hf.id_to_token(i)) for i in range(self.vocab_size)]

  @property
  def lossless(self) -> bool:
    """Returns whether decoding restores texts, except outer spaces and unknown characters."""
    normalizer = json.dumps(self.to_dict()['normalizer'])
    return self.kind in LOSSLESS_KINDS and 'Lowercase' not in normalizer

  @property
  def encoder_starts_with_bos(self) -> bool:
    """Returns whether an encoder reads the begin token before a text (BERT's [CLS])."""
    return self.kind == 'wordpiece'

  def encode(self, text: str) -> list[int]:
    """Returns ids without begin and end tokens."""
    return self._hf.encode(text, add_special_tokens=False).ids

  def encode_with_ends(self, text: str) -> tuple[list[int], list[int]]:
    """Returns ids, and after how many characters of the text each token ends."""
    encoding = self._hf.encode(text, add_special_tokens=False)
    return encoding.ids, [end for _, end in encoding.offsets]

  def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
    """Returns `encode` of each text, computed on all cores."""
    encodings = self._hf.encode_batch_fast(list(texts), add_special_tokens=False)
    return [encoding.ids for encoding in encodings]

  def decode(self, ids: Iterable[int]) -> str:
    """Returns the text of the ids up to the first end token, without special tokens."""
    return self.decode_batch([ids])[0]

  def decode_batch(self, sequences: Iterable[Iterable[int]]) -> list[str]:
    """Returns `decode` of each sequence of ids."""
    texts = self._hf.decode_batch(
      [self._until_end(ids) for ids in sequences], skip_special_tokens=True
    )
    if self._adds_space:
      return [text.removeprefix(' ') for text in texts]
    return texts

  def _until_end(self, ids: Iterable[int]) -> list[int]:
    integers = map(int, ids)
    return list(itertools.takewhile(lambda token: token not in self.eos_ids, integers))

  def truecase(self, text: str) -> str:
    """Writes words in their usual case and capitalises the first; a no-op for a cased tokenizer."""
    if not self.casing:
      return text
    words: Sequence[str] = [self.casing.get(word, word) for word in text.split()]
    text = ' '.join(words)
    return text[:1].upper() + text[1:]

  def to_dict(self) -> dict[str, Any]:
    """Returns the content of a tokenizer.json of the library `tokenizers`."""
    return json.loads(self._text)

  def save(self, path: str | pathlib.Path) -> None:
    content = {
      'kind': self.kind,
      'tokenizer': self.to_dict(),
      'casing': self.casing,
      'special_tokens': self.special_tokens.to_dict(),
    }
    write_atomic(path, json.dumps(content, ensure_ascii=False) + '\n')

  @classmethod
  def load(cls, path: str | pathlib.Path) -> 'Tokenizer':
    """Reads what `save` wrote.

    Files of earlier versions have no 'special_tokens': in them every vocabulary, foreign ones
    too, had been re-ordered to begin with ours.

    Raises:
      UserError: the file is missing or is no tokenizer.
    """
    try:
      content = json.loads(pathlib.Path(path).read_text(encoding='utf-8'))
      special_tokens = SpecialTokens.from_dict(content.get('special_tokens', {}))
      text = json.dumps(content['tokenizer'])
      return cls(content['kind'], text, content.get('casing'), special_tokens)
    except Exception as error:  # tokenizers raises a bare Exception on bad content
      raise UserError(f'{path}: not a tokenizer of this project ({error}).') from None
