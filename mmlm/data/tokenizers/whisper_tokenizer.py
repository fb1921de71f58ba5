"""Whisper's tokenizer (Radford et al. 2022, 2.3): byte-level BPE, languages, tasks, timestamps.

Ids: text, the end of the transcript, the special tokens, then the timestamps <|0.00|>, <|0.02|>,
... up to the end of the vocabulary. Names are those of openai/whisper.
"""

import functools
import json
import pathlib
import re
from collections.abc import Iterable

import tokenizers as hf
from tokenizers import decoders, models, pre_tokenizers

from mmlm.data.tokenizers.special_tokens import SpecialTokens
from mmlm.utils.choices import nearest
from mmlm.utils.errors import UserError

TIME_PRECISION = 0.02  # seconds between two timestamps
TIMESTAMPS = 1501  # 0 to 30 seconds
ENGLISH_ONLY_EOT = 50256  # the end of the transcript in GPT-2's vocabulary
TASKS = ('transcribe', 'translate')
# Annotations of what is not spoken: suppressed, with a space before or not, if it is one token.
SYMBOLS = (
  *'"#()*+/:;<=>@[\\]^_`{|}~「」『』',
  *('<<', '>>', '<<<', '>>>', '--', '---', '-(', '-[', "('", '("'),
  *('((', '))', '(((', ')))', '[[', ']]', '{{', '}}', '♪♪', '♪♪♪'),
)
# The first token of these is always suppressed: their bytes share it, and no other text has it.
MUSICAL_SYMBOLS = '♩♪♫♬♭♮♯'
DASHES = (' -', " '")
# Codes that newer and older vocabularies write in two ways.
ALTERNATIVE_CODES = {'he': 'iw', 'iw': 'he', 'jv': 'jw', 'jw': 'jv'}
LANGUAGE_CODES = {
  'english': 'en',
  'chinese': 'zh',
  'german': 'de',
  'spanish': 'es',
  'russian': 'ru',
  'korean': 'ko',
  'french': 'fr',
  'japanese': 'ja',
  'portuguese': 'pt',
  'turkish': 'tr',
  'polish': 'pl',
  'catalan': 'ca',
  'dutch': 'nl',
  'arabic': 'ar',
  'swedish': 'sv',
  'italian': 'it',
  'indonesian': 'id',
  'hindi': 'hi',
  'finnish': 'fi',
  'vietnamese': 'vi',
  'ukrainian': 'uk',
  'greek': 'el',
  'czech': 'cs',
  'romanian': 'ro',
  'danish': 'da',
  'hungarian': 'hu',
  'norwegian': 'no',
  'thai': 'th',
  'hebrew': 'he',
  'persian': 'fa',
  'swahili': 'sw',
  'lingala': 'ln',
}


class WhisperTokenizer:
  """Maps texts to ids and back.

  Attributes:
    eot: the id of the end of the transcript.
    sot: of its start.
    sot_prev: of the start of the text before it.
    no_speech: of a window in which nobody speaks.
    no_timestamps: of a transcript without timestamps.
    timestamp_begin: of the timestamp 0.
    vocab_size: the number of ids, timestamps included.
    english_only: whether the model has neither languages nor tasks.
  """

  def __init__(
    self,
    tokenizer: hf.Tokenizer,
    vocab_size: int | None = None,
    english_only: bool | None = None,
  ):
    """Builds from a tokenizer of the library `tokenizers`.

    Args:
      vocab_size: None is 1,501 timestamps behind the last special token.
      english_only: None asks the vocabulary.
    """
    self._hf = tokenizer
    self._hf.encode_special_tokens = True  # '<|en|>' in a text is text
    self.eot = self._special_id('endoftext')
    self.sot = self._special_id('startoftranscript')
    self.sot_prev = self._special_id('startofprev')
    self.no_speech = self._special_id('nospeech', 'nocaptions')
    self.no_timestamps = self._special_id('notimestamps')
    self.timestamp_begin = self.no_timestamps + 1
    self.vocab_size = vocab_size or self.timestamp_begin + TIMESTAMPS
    if english_only is None:
      english_only = self.eot == ENGLISH_ONLY_EOT
    self.english_only = english_only

  @classmethod
  def from_folder(
    cls, folder: str | pathlib.Path, vocab_size: int | None = None
  ) -> 'WhisperTokenizer':
    """Reads tokenizer.json, or vocab.json, merges.txt and added_tokens.json.

    Raises:
      UserError: there are no such files, or they are of another model.
    """
    folder = pathlib.Path(folder)
    try:
      if (folder / 'tokenizer.json').is_file():
        tokenizer = hf.Tokenizer.from_file(str(folder / 'tokenizer.json'))
      else:
        tokenizer = _read_vocabulary(folder)
      return cls(tokenizer, vocab_size, _read_english_only(folder))
    except UserError as error:
      raise UserError(f'{folder}: {error}') from None
    except Exception as error:  # tokenizers raises a bare Exception on bad content
      raise UserError(
        f'{folder}: no tokenizer of a Whisper: it needs tokenizer.json, or vocab.json, merges.txt '
        f'and added_tokens.json ({error}).'
      ) from None

  @property
  def special_tokens(self) -> SpecialTokens:
    return SpecialTokens(pad_id=self.sot, bos_id=self.sot, eos_ids=(self.eot,), unk_id=None)

  def _special_id(self, *names: str) -> int:
    """Returns the id of the first of several names that the vocabulary has."""
    for name in names:
      special_id = self._hf.token_to_id(f'<|{name}|>')
      if special_id is not None:
        return special_id
    raise UserError(f'the tokenizer has no <|{names[0]}|>: it is of no Whisper.')

  @functools.cached_property
  def languages(self) -> dict[str, int]:
    """Returns {code: id}; {} for an English-only model, although its vocabulary names them."""
    if self.english_only:
      return {}
    languages = {}
    for special_id in range(self.sot + 1, self.timestamp_begin):
      piece = self._hf.id_to_token(special_id) or ''
      if re.fullmatch(r'<\|[a-z]{2,3}\|>', piece):
        languages[piece[2:-2]] = special_id
    return languages

  def language_code(self, name: str) -> str:
    """Returns the code of a language from its code or its English name.

    Raises:
      UserError: the model has no such language; the message names the nearest.
    """
    code = LANGUAGE_CODES.get(name.lower(), name.lower())
    if code not in self.languages:
      code = ALTERNATIVE_CODES.get(code, code)
    codes = ['en'] if self.english_only else list(self.languages)
    if code in codes:
      return code
    if self.english_only:
      raise UserError(
        f'--language {name}: this model transcribes English only. '
        'Take a multilingual one, such as whisper-base.'
      )
    suggestion = nearest(name.lower(), [*codes, *LANGUAGE_CODES])
    raise UserError(
      f'--language {name}: unknown. Nearest: {suggestion!r}. Codes: {" ".join(sorted(codes))}.'
    )

  def check_task(self, task: str) -> None:
    """Raises UserError for a task that the model does not have."""
    if task not in TASKS:
      raise UserError(
        f'--task {task}: choose one of {", ".join(TASKS)}. Nearest: {nearest(task, TASKS)!r}.'
      )
    if self.english_only and task == 'translate':
      raise UserError(
        '--task translate: this model transcribes English only. '
        'Take a multilingual one, such as whisper-base.'
      )

  def prompt(
    self,
    language: str,
    task: str,
    with_timestamps: bool,
  ) -> list[int]:
    """Returns the tokens before a transcript: start, language, task, and whether it has timestamps.

    An English-only model has neither languages nor tasks.
    """
    prompt = [self.sot]
    if not self.english_only:
      prompt += [self.languages[language], self._special_id(task)]
    if not with_timestamps:
      prompt.append(self.no_timestamps)
    return prompt

  def encode(self, text: str) -> list[int]:
    """Returns the ids of a text; timestamps written as <|1.20|> become timestamp tokens."""
    ids = []
    parts = re.split(r'<\|(\d+\.\d\d)\|>', text)
    for i, part in enumerate(parts):
      is_timestamp = i % 2 == 1
      if is_timestamp:
        ids.append(self.timestamp_begin + round(float(part) / TIME_PRECISION))
      else:
        ids += self._encode_text(part)
    return ids

  def decode(
    self,
    ids: Iterable[int],
    with_timestamps: bool = False,
  ) -> str:
    """Returns the text of ids without special tokens; timestamps as <|1.20|> if requested."""
    runs = [[]]  # of text, between the timestamps
    timestamps = []
    for token in map(int, ids):
      if token < self.eot:
        runs[-1].append(token)
      elif with_timestamps and token >= self.timestamp_begin:
        timestamps.append(f'<|{self.seconds(token):.2f}|>')
        runs.append([])
    texts = self._hf.decode_batch(runs, skip_special_tokens=False)
    return ''.join(
      text + timestamp
      for text, timestamp in zip(
        texts,
        [*timestamps, ''],
      )
    )

  def seconds(self, timestamp: int) -> float:
    """Returns the seconds that a timestamp token stands for."""
    return (timestamp - self.timestamp_begin) * TIME_PRECISION

  @functools.cached_property
  def non_speech_tokens(self) -> tuple[int, ...]:
    """Returns ids that no transcript contains: of symbols, music and dashes, and special tokens."""
    suppressed = {self.sot, self.sot_prev, self.no_speech}
    for symbol in SYMBOLS:
      for ids in (self._encode_text(symbol), self._encode_text(f' {symbol}')):
        if len(ids) == 1:
          suppressed.add(ids[0])
    for symbol in MUSICAL_SYMBOLS:
      suppressed.add(self._encode_text(symbol)[0])
      suppressed.add(self._encode_text(f' {symbol}')[0])
    for dash in DASHES:
      suppressed.add(self._encode_text(dash)[0])
    for name in ('transcribe', 'translate', 'startoflm'):
      special_id = self._hf.token_to_id(f'<|{name}|>')
      if special_id is not None:
        suppressed.add(special_id)
    return tuple(sorted(suppressed))

  @functools.cached_property
  def blank_tokens(self) -> tuple[int, ...]:
    """Returns ids that no transcript starts with: a space by itself, and the end."""
    return (*self._encode_text(' ')[:1], self.eot)

  def _encode_text(self, text: str) -> list[int]:
    return self._hf.encode(text, add_special_tokens=False).ids


def _read_english_only(folder: pathlib.Path) -> bool | None:
  """Reads generation_config.json; None where it does not say."""
  path = folder / 'generation_config.json'
  if not path.is_file():
    return None
  is_multilingual = json.loads(path.read_text(encoding='utf-8')).get('is_multilingual')
  if is_multilingual is None:
    return None
  return not is_multilingual


def _read_vocabulary(folder: pathlib.Path) -> hf.Tokenizer:
  """Builds a tokenizer from vocab.json, merges.txt and added_tokens.json."""
  vocabulary = str(folder / 'vocab.json')
  tokenizer = hf.Tokenizer(models.BPE.from_file(vocabulary, str(folder / 'merges.txt')))
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  added = json.loads((folder / 'added_tokens.json').read_text(encoding='utf-8'))
  tokenizer.add_special_tokens(sorted(added, key=added.get))
  for name, special_id in added.items():
    if tokenizer.token_to_id(name) != special_id:
      raise UserError(f'added_tokens.json: {name!r} is not the id that follows vocab.json.')
  return tokenizer
