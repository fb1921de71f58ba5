"""Whisper's tokenizer (Radford et al. 2022, 2.3): byte-level BPE, and tokens for languages, tasks and times.

Ids: text, then the end of the text, then the special tokens, then times <|0.00|>, <|0.02|>, ... to the end of the vocabulary.
"""

import functools
import json
import pathlib
import re

import tokenizers as hf
from tokenizers import decoders, models, pre_tokenizers

from mmlm.utils.choices import nearest
from mmlm.utils.errors import UserError

TICK = 0.02  # seconds between two times
GPT2_END = 50256  # the id of the end in the vocabulary of the English-only models
TASKS = ('transcribe', 'translate')
# What is written of sounds that nobody speaks: these, with a space before or not, where that is one token.
SYMBOLS = (
  *'"#()*+/:;<=>@[\\]^_`{|}~「」『』',
  '<<',
  '>>',
  '<<<',
  '>>>',
  '--',
  '---',
  '-(',
  '-[',
  "('",
  '("',
  '((',
  '))',
  '(((',
  ')))',
  '[[',
  ']]',
  '{{',
  '}}',
  '♪♪',
  '♪♪♪',
)
NOTES = (
  '♩♪♫♬♭♮♯'  # and of these the first token always: their bytes share it, and nothing else has it
)
# Codes that newer and older vocabularies write in two ways.
SAME = {'he': 'iw', 'iw': 'he', 'jv': 'jw', 'jw': 'jv'}
NAMES = {
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
  """Text to ids and back. `vocabulary` counts all ids, times included; None: 1,501 times behind the last special token."""

  def __init__(
    self, tokenizer: hf.Tokenizer, vocabulary: int | None = None, english_only: bool | None = None
  ):
    self._hf = tokenizer
    self._hf.encode_special_tokens = True  # '<|en|>' in a text is text
    self.end, self.start, self.no_times = map(
      self._special, ('endoftext', 'startoftranscript', 'notimestamps')
    )
    self.no_speech = self._special('nospeech', 'nocaptions')
    self.previous = self._special('startofprev')
    self.first_time = self.no_times + 1
    self.vocabulary = vocabulary or self.first_time + 1501
    if english_only is None:
      self.english_only = self.end == GPT2_END
    else:
      self.english_only = english_only

  @classmethod
  def of_folder(cls, folder, vocabulary: int | None = None) -> 'WhisperTokenizer':
    """That of tokenizer.json, or of vocab.json, merges.txt and added_tokens.json; UserError where there is none, or another's."""
    folder = pathlib.Path(folder)
    try:
      if (folder / 'tokenizer.json').is_file():
        tokenizer = hf.Tokenizer.from_file(str(folder / 'tokenizer.json'))
      else:
        tokenizer = _of_vocabulary(folder)
      settings = folder / 'generation_config.json'
      if settings.is_file():
        multilingual = json.loads(settings.read_text(encoding='utf-8')).get('is_multilingual')
      else:
        multilingual = None
      return cls(tokenizer, vocabulary, None if multilingual is None else not multilingual)
    except UserError as error:
      raise UserError(f'{folder}: {error}') from None
    except Exception as error:  # tokenizers raises a bare Exception on bad content
      raise UserError(
        f'{folder}: no tokenizer of a Whisper: it needs tokenizer.json, or vocab.json, merges.txt and added_tokens.json ({error}).'
      ) from None

  def _special(self, *names: str) -> int:
    found = [self._hf.token_to_id(f'<|{name}|>') for name in names]
    if not any(found):
      raise UserError(f'the tokenizer has no <|{names[0]}|>: it is of no Whisper.')
    return next(i for i in found if i is not None)

  @functools.cached_property
  def languages(self) -> dict[str, int]:
    """{code: id}; of an English-only model none, though its vocabulary names them."""
    if self.english_only:
      return {}
    pieces = {i: self._hf.id_to_token(i) or '' for i in range(self.start + 1, self.first_time)}
    result = {}
    for i, piece in pieces.items():
      if re.fullmatch(r'<\|[a-z]{2,3}\|>', piece):
        result[piece[2:-2]] = i
    return result

  def language(self, name: str) -> str:
    """The code of a language given by its code or English name; UserError with the nearest where there is none."""
    code = NAMES.get(name.lower(), name.lower())
    if code not in self.languages:
      code = SAME.get(code, code)
    else:
      code = code
    if self.english_only:
      known = ['en']
    else:
      known = list(self.languages)
    if code not in known:
      if self.english_only:
        raise UserError(
          f'--language {name}: this model writes English alone. Take a multilingual one, such as whisper-base.'
        )
      raise UserError(
        f'--language {name}: unknown. Nearest: {nearest(name.lower(), [*known, *NAMES])!r}. Codes: {" ".join(sorted(known))}.'
      )
    return code

  def prompt(self, language: str, task: str, times: bool) -> list[int]:
    """What stands before the text: start, language and task (neither in an English-only model), and that no times follow."""
    if self.english_only:
      middle = []
    else:
      middle = [self.languages[language], self._special(task)]
    return [self.start, *middle, *[self.no_times] * (not times)]

  def check_task(self, task: str):
    """UserError for a task that the model does not have."""
    if task not in TASKS:
      raise UserError(
        f'--task {task}: choose one of {", ".join(TASKS)}. Nearest: {nearest(task, TASKS)!r}.'
      )
    if self.english_only and task == 'translate':
      raise UserError(
        '--task translate: this model knows English alone. Take a multilingual one, such as whisper-base.'
      )

  def encode(self, text: str) -> list[int]:
    """Ids of a text; times written as <|1.20|> become theirs."""
    parts = re.split(r'<\|(\d+\.\d\d)\|>', text)
    ids = []
    for i, part in enumerate(parts):
      ids += (
        [self.first_time + round(float(part) / TICK)]
        if i % 2
        else self._hf.encode(part, add_special_tokens=False).ids
      )
    return ids

  def decode(self, ids, times: bool = False) -> str:
    """The text of ids; special tokens are left out, and times too unless they are wanted, as <|1.20|>."""
    groups = [[]]
    kept = []
    for i in map(int, ids):
      if i < self.end:
        groups[-1].append(i)
      elif times and i >= self.first_time:
        kept.append(f'<|{self.seconds(i):.2f}|>')
        groups.append([])
    texts = self._hf.decode_batch(groups, skip_special_tokens=False)
    return ''.join(text + time for text, time in zip(texts, [*kept, '']))

  def seconds(self, time: int) -> float:
    """The time that a token stands for."""
    return (time - self.first_time) * TICK

  @functools.cached_property
  def not_speech(self) -> tuple[int, ...]:
    """Ids that no transcript holds: of symbols, notes and dashes, and the special tokens."""

    def one(text):
      return [self._hf.encode(form, add_special_tokens=False).ids for form in (text, f' {text}')]

    found = {ids[0] for text in SYMBOLS for ids in one(text) if len(ids) == 1}
    found |= {ids[0] for text in NOTES for ids in one(text)}
    found |= {self._hf.encode(text, add_special_tokens=False).ids[0] for text in (' -', " '")}
    specials = []
    for name in ('transcribe', 'translate', 'startoflm'):
      specials.append(self._hf.token_to_id(f'<|{name}|>'))
    return tuple(
      sorted(
        found | {self.start, self.previous, self.no_speech} | {i for i in specials if i is not None}
      )
    )

  @functools.cached_property
  def not_first(self) -> tuple[int, ...]:
    """Ids that no transcript starts with: a space alone, and the end."""
    return (*self._hf.encode(' ', add_special_tokens=False).ids[:1], self.end)


def _of_vocabulary(folder: pathlib.Path) -> hf.Tokenizer:
  tokenizer = hf.Tokenizer(
    models.BPE.from_file(str(folder / 'vocab.json'), str(folder / 'merges.txt'))
  )
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  added = json.loads((folder / 'added_tokens.json').read_text(encoding='utf-8'))
  tokenizer.add_special_tokens(sorted(added, key=added.get))
  if wrong := [name for name, i in added.items() if tokenizer.token_to_id(name) != i]:
    raise UserError(f'added_tokens.json: {wrong[0]!r} is not the id that follows vocab.json.')
  return tokenizer
