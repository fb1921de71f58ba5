"""Running text as sequences of a fixed length.

Random windows, continuous lanes, packed documents, or sliding windows.

A document is learned as a sentence is: its first token is predicted from the begin token, and its
last token is the end token where ends are learned. The text is all documents, one after another.

Each way of cutting it is a plan: the number of a batch -> `Batch` of sequence numbers, and the
number of a sequence -> the spans of the text in it. Both are pure, so that the position in the data
is one number.

Axes: N tokens of the text, B sequences of a batch, T tokens of a sequence.
"""

import bisect
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from mmlm.data.batching import Batch, part_of
from mmlm.data.text import words
from mmlm.data.tokenizers.special_tokens import DEFAULT_SPECIAL_TOKENS, SpecialTokens
from mmlm.data.tokenizers.tokenizer import Tokenizer
from mmlm.utils.choices import one_of
from mmlm.utils.errors import UserError


class Span(NamedTuple):
  """Tokens start..stop of the text in their order; those from `first` on are predicted."""

  start: int
  first: int
  stop: int

  @property
  def size(self) -> int:
    return self.stop - self.start


@dataclasses.dataclass(frozen=True)
class RunningText:
  """The documents of a split.

  Attributes:
    name: of the split.
    ids: of the documents.
    texts: of the documents.
    starts: [documents + 1], the first token of each document, and N.
    tokens: [N] int32.
    places: [N] int32, after how many characters of its document each token ends.
    special_tokens: of the vocabulary.
  """

  name: str
  ids: list[str]
  texts: list[str]
  starts: np.ndarray
  tokens: np.ndarray
  places: np.ndarray
  special_tokens: SpecialTokens = DEFAULT_SPECIAL_TOKENS

  @functools.cached_property
  def inputs(self) -> np.ndarray:
    """Returns [N] int32: the token that each token is predicted from."""
    bos_id = self.special_tokens.bos_id
    inputs = np.concatenate(
      [
        [bos_id],
        self.tokens[:-1],
      ]
    ).astype(np.int32)
    inputs[self.starts[:-1]] = bos_id
    return inputs

  def first(self, documents: int) -> 'RunningText':
    """Returns the first documents; all for 0."""
    if not 0 < documents < len(self.ids):
      return self
    stop = int(self.starts[documents])
    return dataclasses.replace(
      self,
      ids=self.ids[:documents],
      texts=self.texts[:documents],
      starts=self.starts[: documents + 1],
      tokens=self.tokens[:stop],
      places=self.places[:stop],
    )

  def document(self, token: int) -> int:
    """Returns the number of the document that holds the token at a place of the text."""
    return int(np.searchsorted(self.starts, token, side='right')) - 1


def texts_of(example: dict[str, Any]) -> tuple[str, ...]:
  """Returns what a language model learns of an example: its targets or, without any, its text."""
  if example.get('targets'):
    return tuple(example['targets'])
  if example.get('text'):
    return (example['text'],)
  raise UserError(f'{example["id"]} has neither a target nor a text.')


def read_running_text(
  source: Sequence[dict[str, Any]],
  tokenizer: Tokenizer,
  ends: bool,
  name: str,
  language: str = '',
) -> RunningText:
  """Reads all texts of a source as one.

  Args:
    ends: the end of a document is a token.
    language: of Moses' rules; '' for none.
  """
  ids = []
  texts = []
  tokens = []
  places = []
  for number in range(len(source)):
    example = source[number]
    for raw_text in texts_of(example):
      text = words(raw_text, language)
      token_ids, token_ends = tokenizer.encode_with_ends(text)
      if ends:
        token_ids = [*token_ids, tokenizer.eos_id]
        token_ends = [*token_ends, len(text)]
      ids.append(example['id'])
      texts.append(text)
      tokens.append(np.array(token_ids, np.int32))
      places.append(np.array(token_ends, np.int32))
  sizes = [len(token_ids) for token_ids in tokens]
  if not sum(sizes):
    raise UserError(f'{name}: no token in it.')
  return RunningText(
    name,
    ids,
    texts,
    starts=np.cumsum([0, *sizes]),
    tokens=np.concatenate(tokens),
    places=np.concatenate(places),
    special_tokens=tokenizer.special_tokens,
  )


# Plans


class Plan(Protocol):
  """Which spans of the text are in which batch."""

  steps_per_epoch: int
  carries_state: bool  # a model carries its state from a batch to the next one

  @property
  def examples_per_step(self) -> float:
    """The examples of a step, on average."""
    ...

  def __getitem__(self, number: int) -> Batch:
    """Returns the numbers of the sequences of a batch."""
    ...

  def spans(self, sequence: int) -> list[Span]:
    """Returns the spans of a sequence, T tokens at most."""
    ...

  def fresh(self, number: int) -> bool:
    """Returns whether the sequences of a batch begin anew: no state is carried into them."""
    ...


class RandomWindows:
  """Sequences that begin anywhere in the text; an epoch has as many tokens as the text."""

  carries_state = False

  def __init__(
    self,
    text: RunningText,
    length: int,
    batch_size: int,
    seed: int,
  ):
    total = len(text.tokens)
    self.length = length
    self.batch_size = batch_size
    self.seed = seed
    self.last_start = total - length
    if self.last_start < 0:
      raise UserError(
        f'{text.name}: the whole text has {total} tokens, and a window data.max_length={length}. '
        'Choose a shorter one, or give more text.'
      )
    self.steps_per_epoch = max(1, total // (length * batch_size))
    self.examples_per_step = batch_size

  def __getitem__(self, number: int) -> Batch:
    rng = np.random.default_rng((self.seed, number))
    starts = rng.integers(self.last_start + 1, size=self.batch_size)
    return Batch(starts, self.length, self.batch_size)

  def spans(self, sequence: int) -> list[Span]:
    return [Span(sequence, sequence, sequence + self.length)]

  def fresh(self, number: int) -> bool:
    return True


class Lanes:
  """B lanes through the text, each continued from batch to batch.

  Sequence n B + b is batch n of lane b. In each epoch the text is rotated by a random amount, so
  that lanes begin elsewhere and tokens have other places in their sequences; without `rotate` it is
  not. Each token is read once in an epoch.
  """

  carries_state = True

  def __init__(
    self, text: RunningText, length: int, batch_size: int, seed: int, rotate: bool = True
  ):
    self.total = len(text.tokens)
    self.length = length
    self.batch_size = batch_size
    self.seed = seed
    self.rotate = rotate
    if rotate and self.total < batch_size:
      raise UserError(
        f'{text.name}: the text has {self.total} tokens for train.batch_size={batch_size} lanes. '
        'Choose a smaller one, or give more text.'
      )
    self.lane_length = -(-self.total // batch_size)
    self.steps_per_epoch = -(-self.lane_length // length)
    self.examples_per_step = batch_size

  def __len__(self) -> int:
    return self.steps_per_epoch

  def __getitem__(self, number: int) -> Batch:
    sequences = number * self.batch_size + np.arange(self.batch_size)
    return Batch(sequences, self.length, self.batch_size)

  def fresh(self, number: int) -> bool:
    return number % self.steps_per_epoch == 0

  def spans(self, sequence: int) -> list[Span]:
    number, lane = divmod(sequence, self.batch_size)
    epoch, step = divmod(number, self.steps_per_epoch)
    offset = 0
    if self.rotate:
      rng = np.random.default_rng((self.seed, epoch))
      offset = int(rng.integers(self.total))
    start = lane * self.lane_length + step * self.length
    stop_of_lane = min((lane + 1) * self.lane_length, self.total)
    stop = min(start + self.length, stop_of_lane)
    start += offset
    stop += offset
    # What lies behind the end of the rotated text is at its beginning.
    spans = []
    if start < min(stop, self.total):
      spans.append(Span(start, start, min(stop, self.total)))
    wrapped = max(start, self.total) - self.total
    if wrapped < stop - self.total:
      spans.append(Span(wrapped, wrapped, stop - self.total))
    return spans


class ListedSequences:
  """Sequences that are given by their spans, each once in an epoch, shuffled if there is a seed."""

  carries_state = False

  def __init__(
    self, sequences: list[list[Span]], length: int, batch_size: int, seed: int | None = None
  ):
    self.sequences = sequences
    self.length = length
    self.batch_size = batch_size
    self.seed = seed
    self.steps_per_epoch = -(-len(sequences) // batch_size)
    self.examples_per_step = len(sequences) / self.steps_per_epoch

  def __len__(self) -> int:
    return self.steps_per_epoch

  # A plan lives as long as the process; threads may be in two epochs at once.
  @functools.lru_cache(2)  # noqa: B019
  def _order(self, epoch: int) -> np.ndarray:
    if self.seed is None:
      return np.arange(len(self.sequences))
    rng = np.random.default_rng((self.seed, epoch))
    return rng.permutation(len(self.sequences))

  def __getitem__(self, number: int) -> Batch:
    epoch, position = divmod(number, self.steps_per_epoch)
    start = position * self.batch_size
    sequences = self._order(epoch)[start : start + self.batch_size]
    return Batch(sequences, self.length, self.batch_size)

  def spans(self, sequence: int) -> list[Span]:
    return self.sequences[sequence]

  def fresh(self, number: int) -> bool:
    return True


def pack_documents(
  text: RunningText,
  length: int,
  seed: int,
) -> list[list[Span]]:
  """Returns documents in sequences of at most `length` tokens; longer ones are cut."""
  pieces = []
  for begin, end in zip(
    text.starts[:-1].tolist(),
    text.starts[1:].tolist(),
  ):
    for start in range(begin, end, length):
      pieces.append(Span(start, start, min(start + length, end)))
  order = np.random.default_rng(seed).permutation(len(pieces))
  return best_fit([pieces[i] for i in order], length)


def best_fit(spans: list[Span], length: int) -> list[list[Span]]:
  """Packs spans of at most `length` tokens: each goes where it leaves the least room (best fit)."""
  sequences: list[list[Span]] = []
  free: list[tuple[int, int]] = []  # sorted (room, sequence)
  for span in spans:
    place = bisect.bisect_left(free, (span.size, -1))
    if place < len(free):
      room, sequence = free.pop(place)
    else:
      room, sequence = length, len(sequences)
      sequences.append([])
    sequences[sequence].append(span)
    if room > span.size:
      bisect.insort(free, (room - span.size, sequence))
  return sequences


def sliding_windows(
  begin: int,
  end: int,
  length: int,
  stride: int,
) -> list[Span]:
  """Returns windows over the tokens begin..end, in which each token is predicted once.

  Except at the beginning, a token is predicted from at least `length - stride` tokens before it.
  With stride = length windows do not overlap.
  """
  spans = [Span(begin, begin, min(begin + length, end))]
  while spans[-1].stop < end:
    first = spans[-1].stop
    stop = min(first + stride, end)
    spans.append(Span(max(begin, stop - length), first, stop))
  return spans


def _packed_plan(
  text: RunningText,
  length: int,
  batch_size: int,
  seed: int,
) -> ListedSequences:
  return ListedSequences(pack_documents(text, length, seed), length, batch_size, seed)


# data.stream: (text, length, batch_size, seed) -> plan
PLANS = {
  'windows': RandomWindows,
  'continuous': Lanes,
  'packed': _packed_plan,
}


def evaluation_plan(
  text: RunningText, stream: str, apart: bool, length: int, batch_size: int, stride: int = 0
) -> Lanes | ListedSequences:
  """Returns a plan in which each token of a text is predicted once.

  Lanes for 'continuous', otherwise windows that slide by `stride` (0 is `length`).

  Args:
    apart: windows do not reach into other documents, and several share a sequence. Without a
      stream, when examples are sentences, windows do not reach into others either.
  """
  if stream == 'continuous':
    return Lanes(text, length, batch_size, 0, rotate=False)
  if apart or not stream:
    borders = text.starts.tolist()
  else:
    borders = [0, len(text.tokens)]
  spans = []
  for begin, end in zip(borders, borders[1:]):
    if begin < end:
      spans += sliding_windows(begin, end, length, stride or length)
  if apart:
    sequences = best_fit(spans, length)
  else:
    sequences = [[span] for span in spans]
  return ListedSequences(sequences, length, batch_size)


class StreamLoader:
  """Loads the sequences of a plan as flat dicts of arrays.

  inputs, target, target_mask [B, T] and weight [B]; where documents share a sequence without seeing
  each other also segments (0 for padding, then 1, 2, ...) and positions [B, T]; where a state is
  carried, fresh [B].

  Args:
    apart: documents that share a sequence do not see each other.
    part: see `pipeline.Loader`.
  """

  finish = None

  def __init__(
    self, text: RunningText, plan: Plan, apart: bool = False, part: tuple[int, int] = (0, 1)
  ):
    self.text = text
    self.plan = plan
    self.apart = apart
    self.part = part

  def __call__(
    self,
    number: int,
    batch: Batch,
  ) -> dict[str, np.ndarray]:
    batch, _ = part_of(batch, *self.part)
    arrays = self._empty(batch.size, batch.length)
    for i, sequence in enumerate(batch.indices):
      column = 0
      for segment, span in enumerate(self.plan.spans(int(sequence)), 1):
        place = i, slice(column, column + span.size)
        self._fill(arrays, place, segment, span)
        column += span.size
    has_targets: Any = arrays['target_mask'].any(1)
    arrays['weight'] = has_targets.astype(np.float32)
    if self.plan.carries_state:
      arrays['fresh'] = np.full(batch.size, self.plan.fresh(number))
    return arrays

  def _empty(
    self,
    size: int,
    length: int,
  ) -> dict[str, np.ndarray]:
    shape = size, length
    pad_id = self.text.special_tokens.pad_id
    arrays = {
      'inputs': np.full(shape, pad_id, np.int32),
      'target': np.full(shape, pad_id, np.int32),
    }
    if self.apart:
      arrays['segments'] = np.zeros(shape, np.int32)
      arrays['positions'] = np.zeros(shape, np.int32)
    arrays['target_mask'] = np.zeros(shape, bool)
    return arrays

  def _fill(
    self, arrays: dict[str, np.ndarray], place: tuple[int, slice], segment: int, span: Span
  ) -> None:
    arrays['inputs'][place] = self.text.inputs[span.start : span.stop]
    arrays['target'][place] = self.text.tokens[span.start : span.stop]
    arrays['target_mask'][place] = np.arange(span.start, span.stop) >= span.first
    if self.apart:
      arrays['segments'][place] = segment
      arrays['positions'][place] = np.arange(span.size)

  def ids(self, number: int) -> list[str]:
    """Returns the documents of a batch."""
    ids = {}
    for sequence in self.plan[number].indices:
      for span in self.plan.spans(int(sequence)):
        ids[self.text.ids[self.text.document(span.start)]] = None
    return list(ids)


# Checks


def check_stream(
  config: Any,
  is_language_model: bool,
  devices: int,
  processes: int,
) -> None:
  """Raises UserError where running text cannot be read as data.stream names.

  Args:
    is_language_model: the model reads no other input.
  """
  one_of('data.stream', config.data.stream, PLANS)
  for problem in _stream_problems(config, is_language_model, devices, processes):
    raise UserError(problem)


def _stream_problems(
  config: Any, is_language_model: bool, devices: int, processes: int
) -> Iterator[str]:
  data = config.data
  stream = data.stream
  head = config.model.head.name
  if not is_language_model:
    yield f'data.stream={stream!r}: running text is for the task language_model without encoders.'
  if (stream == 'continuous') != (head == 'lstm'):
    yield (
      f"data.stream={stream!r} with model.head.name={head!r}: 'continuous' is for the head 'lstm', "
      'and it for that.'
    )
  if stream == 'continuous':
    yield from _lane_problems(config, devices, processes)
  if stream == 'packed' and not data.across and head != 'transformer_decoder':
    yield (
      f'data.across=False: the head {head!r} cannot keep packed documents apart, '
      "'transformer_decoder' can."
    )
  if any(data.languages.values()):
    yield (
      f"data.languages={data.languages.to_dict()}: running text is read as it is, set both to ''."
    )
  if config.train.batch_tokens:
    yield (
      'train.batch_tokens: sequences of running text have one length, set it to 0 and choose '
      'train.batch_size.'
    )
  stride = config.evaluate.stride
  if not 0 <= stride <= data.max_length:
    yield f'evaluate.stride={stride}: expected 0 to data.max_length={data.max_length}.'


def _lane_problems(
  config: Any,
  devices: int,
  processes: int,
) -> Iterator[str]:
  batch_size = config.train.batch_size
  accumulate = config.train.accumulate
  parts = devices * accumulate
  if batch_size % parts:
    yield (
      f"train.batch_size={batch_size}: the lanes of data.stream='continuous' keep their states on "
      f'their devices, choose a multiple of {parts} ({devices} devices times '
      f'train.accumulate={accumulate}).'
    )
  if processes > 1:
    yield (
      f"data.stream='continuous': lanes are read by one process, and there are {processes}. "
      'Choose another stream, or one host.'
    )
