"""Running text as rows of a fixed length: random windows, lanes that are read on from step to step, packed documents; sliding windows.

Axes: N tokens of the text, B rows of a batch, T tokens of a row.

A document is learned as a sentence is: its first token is read off <bos>, and its last is <eos> where ends are learned. The text is all of
them, one after another. Each way of cutting it is a plan: number -> Batch of row numbers, and row number -> the spans of the text that
stand in it; both are pure, so that the position in the data is one number.
"""

import bisect
import dataclasses
import functools
from typing import NamedTuple

import numpy as np

from mmlm.data.batching import Batch, part_of
from mmlm.data.text import words
from mmlm.data.tokenizers.special_tokens import DEFAULT_SPECIAL_TOKENS, SpecialTokens
from mmlm.data.tokenizers.tokenizer import Tokenizer
from mmlm.utils.choices import one_of
from mmlm.utils.errors import UserError


class Span(NamedTuple):
  """Tokens start..stop of the text, read in this order; those from `first` on are predicted."""

  start: int
  first: int
  stop: int


@dataclasses.dataclass(frozen=True)
class RunningText:
  """The documents of a split."""

  name: str  # of the split
  ids: list[str]
  texts: list[str]
  starts: np.ndarray  # [documents + 1] where each begins, and N
  tokens: np.ndarray  # [N] int32
  places: np.ndarray  # [N] int32: where in its document each token ends, in characters; an end of document lies behind them
  special_tokens: SpecialTokens = DEFAULT_SPECIAL_TOKENS

  @functools.cached_property
  def inputs(self) -> np.ndarray:
    """[N]: what is read before each token."""
    bos_id = self.special_tokens.bos_id
    inputs = np.concatenate([[bos_id], self.tokens[:-1]]).astype(np.int32)
    inputs[self.starts[:-1]] = bos_id
    return inputs

  def first(self, documents: int) -> 'RunningText':
    """The first documents alone; all for 0."""
    if not 0 < documents < len(self.ids):
      return self
    stop = int(self.starts[documents])
    return RunningText(
      self.name,
      self.ids[:documents],
      self.texts[:documents],
      self.starts[: documents + 1],
      self.tokens[:stop],
      self.places[:stop],
      self.special_tokens,
    )

  def document(self, place: int) -> int:
    """The number of the document that holds a token."""
    return int(np.searchsorted(self.starts, place, side='right')) - 1


def texts_of(example: dict) -> tuple[str, ...]:
  """What a language model learns of an example: its targets, or the text of one that has none."""
  found = example.get('targets') or tuple(filter(None, [example.get('text')]))
  if not found:
    raise UserError(f'{example["id"]} has neither a target nor a text.')
  return tuple(found)


def read_running_text(
  source, tokenizer: Tokenizer, ends: bool, name: str, language: str = ''
) -> RunningText:
  """All texts of a source as one; `ends`: the end of a document is a token; `language`: of Moses' rules."""
  ids = []
  texts = []
  rows = []
  places = []
  end = [tokenizer.eos_id] * ends
  for example in (source[i] for i in range(len(source))):
    for text in (words(text, language) for text in texts_of(example)):
      row, ended = tokenizer.encode_with_ends(text)
      ids.append(example['id'])
      texts.append(text)
      rows.append(np.array(row + end, np.int32))
      places.append(np.array(ended + [len(text)] * ends, np.int32))
  if not sum(map(len, rows)):
    raise UserError(f'{name}: no token in it.')
  starts = np.cumsum([0, *map(len, rows)])
  return RunningText(
    name,
    ids,
    texts,
    starts,
    np.concatenate(rows),
    np.concatenate(places),
    tokenizer.special_tokens,
  )


class RandomWindows:
  """Rows that begin anywhere in the text; an epoch has as many tokens as the text."""

  def __init__(self, text: RunningText, length: int, batch_size: int, seed: int):
    self.last = len(text.tokens) - length
    self.length = length
    self.batch_size = batch_size
    self.seed = seed
    if self.last < 0:
      raise UserError(
        f'{text.name}: the whole text has {len(text.tokens)} tokens, and a window data.max_length={length}. Choose a shorter one, or give more text.'
      )
    self.steps_per_epoch = max(1, len(text.tokens) // (length * batch_size))
    self.examples_per_step = batch_size

  def __getitem__(self, number: int) -> Batch:
    starts = np.random.default_rng((self.seed, number)).integers(
      self.last + 1, size=self.batch_size
    )
    return Batch(starts, self.length, self.batch_size)

  def spans(self, row: int) -> list[Span]:
    return [Span(row, row, row + self.length)]


class Lanes:
  """B lanes through the text, read on from batch to batch; row n B + b is what lane b reads in batch n.

  In each epoch lanes begin elsewhere: the text is turned by a random amount, so that its tokens stand at other places of a row; `turned`
  False leaves it as it is. Every token is read once in an epoch; where lanes begin, `fresh`, nothing is carried on.
  """

  def __init__(
    self, text: RunningText, length: int, batch_size: int, seed: int, turned: bool = True
  ):
    self.total = len(text.tokens)
    self.length = length
    self.batch_size = batch_size
    self.seed = seed
    self.turned = turned
    if turned and self.total < batch_size:
      raise UserError(
        f'{text.name}: the text has {self.total} tokens for train.batch_size={batch_size} lanes. Choose a smaller one, or give more text.'
      )
    self.lane = -(-self.total // batch_size)
    self.steps_per_epoch = -(-self.lane // length)
    self.examples_per_step = batch_size

  def __len__(self):
    return self.steps_per_epoch

  def __getitem__(self, number: int) -> Batch:
    return Batch(
      number * self.batch_size + np.arange(self.batch_size), self.length, self.batch_size
    )

  def fresh(self, number: int) -> bool:
    return number % self.steps_per_epoch == 0

  def spans(self, row: int) -> list[Span]:
    (epoch, step), lane = (
      divmod(row // self.batch_size, self.steps_per_epoch),
      row % self.batch_size,
    )
    if self.turned:
      turn = int(np.random.default_rng((self.seed, epoch)).integers(self.total))
    else:
      turn = 0
    low = lane * self.lane + step * self.length
    high = min((lane + 1) * self.lane, self.total)
    low, high = low + turn, min(low + self.length, high) + turn
    pieces = [
      (low, min(high, self.total)),
      (max(low, self.total) - self.total, high - self.total),
    ]
    return [Span(start, start, stop) for start, stop in pieces if start < stop]


class Rows:
  """Rows that are given by their spans, each once in an epoch, shuffled where there is a seed."""

  def __init__(self, rows: list[list[Span]], length: int, batch_size: int, seed: int | None = None):
    self.rows = rows
    self.length = length
    self.batch_size = batch_size
    self.seed = seed
    self.steps_per_epoch = -(-len(rows) // batch_size)
    self.examples_per_step = len(rows) / self.steps_per_epoch

  def __len__(self):
    return self.steps_per_epoch

  @functools.lru_cache(2)  # noqa: B019 a plan lives as long as the process; threads may be in two epochs at once
  def _order(self, epoch: int) -> np.ndarray:
    number = len(self.rows)
    if self.seed is None:
      return np.arange(number)
    return np.random.default_rng((self.seed, epoch)).permutation(number)

  def __getitem__(self, number: int) -> Batch:
    epoch, position = divmod(number, self.steps_per_epoch)
    return Batch(
      self._order(epoch)[position * self.batch_size : (position + 1) * self.batch_size],
      self.length,
      self.batch_size,
    )

  def spans(self, row: int) -> list[Span]:
    return self.rows[row]


def packed(text: RunningText, length: int, seed: int) -> list[list[Span]]:
  """Documents in rows of at most `length` tokens, longer ones cut, each in the row that it fills best."""
  pieces = []
  for begin, stop in zip(
    text.starts[:-1].tolist(),
    text.starts[1:].tolist(),
  ):
    for start in range(begin, stop, length):
      pieces.append(Span(start, start, min(start + length, stop)))
  return fill([pieces[i] for i in np.random.default_rng(seed).permutation(len(pieces))], length)


def fill(spans: list[Span], length: int) -> list[list[Span]]:
  """Spans of at most `length` tokens in rows: each goes where the least room is left that holds it (best fit)."""
  # free: sorted (room, row)
  rows = []
  free = []
  for span in spans:
    size = span.stop - span.start
    place = bisect.bisect_left(free, (size, -1))
    room, row = free.pop(place) if place < len(free) else (length, len(rows))
    if row == len(rows):
      rows.append([])
    rows[row].append(span)
    if room > size:
      bisect.insort(free, (room - size, row))
  return rows


def sliding(begin: int, end: int, length: int, stride: int) -> list[Span]:
  """Windows over the tokens begin..end, of which each is predicted once: from `length - stride` tokens before it or more, but at the start.

  With stride = length windows lie side by side.
  """
  spans = [Span(begin, begin, min(begin + length, end))]
  while (first := spans[-1].stop) < end:
    stop = min(first + stride, end)
    spans.append(Span(max(begin, stop - length), first, stop))
  return spans


PLANS = {
  'windows': RandomWindows,
  'continuous': Lanes,
  'packed': lambda text, length, batch_size, seed: Rows(
    packed(text, length, seed), length, batch_size, seed
  ),
}


def evaluation_plan(
  text: RunningText, stream: str, apart: bool, length: int, batch_size: int, stride: int = 0
):
  """Every token of a text once: lanes for 'continuous', else windows that slide by `stride` (0 = length), over all documents as one, or over
  each by itself: `apart`, several in a row, and without a stream, where rows are sentences.
  """
  if stream == 'continuous':
    return Lanes(text, length, batch_size, 0, turned=False)
  if apart or not stream:
    borders = text.starts.tolist()
  else:
    borders = [0, len(text.tokens)]
  spans = []
  for begin, end in zip(borders, borders[1:]):
    for span in sliding(begin, end, length, stride or length):
      if begin < end:
        spans.append(span)
  return Rows(fill(spans, length) if apart else [[span] for span in spans], length, batch_size)


class StreamLoader:
  """Loads the rows of a plan as flat dicts: inputs, target, target_mask [B, T], weight [B], and

  segments and positions [B, T] where documents that share a row do not see each other (0 where there is nothing, 1, 2, ...); fresh [B]
  where lanes say that they begin. `part`: as that of `pipeline.Loader`.
  """

  finish = None

  def __init__(self, text: RunningText, plan, apart: bool = False, part: tuple = (0, 1)):
    self.text = text
    self.plan = plan
    self.apart = apart
    self.part = part

  def __call__(self, number: int, batch: Batch) -> dict:
    batch, _ = part_of(batch, *self.part)
    shape = batch.size, batch.length
    pad_id = self.text.special_tokens.pad_id
    out = {'inputs': np.full(shape, pad_id, np.int32), 'target': np.full(shape, pad_id, np.int32)}
    if self.apart:
      out |= {'segments': np.zeros(shape, np.int32), 'positions': np.zeros(shape, np.int32)}
    out['target_mask'] = np.zeros(shape, bool)
    for place, row in enumerate(batch.indices):
      column = 0
      for segment, (start, first, stop) in enumerate(self.plan.spans(int(row)), 1):
        here = place, slice(column, column + stop - start)
        out['inputs'][here], out['target'][here] = (
          self.text.inputs[start:stop],
          self.text.tokens[start:stop],
        )
        out['target_mask'][here] = np.arange(start, stop) >= first
        if self.apart:
          out['segments'][here], out['positions'][here] = segment, np.arange(stop - start)
        column += stop - start
    out['weight'] = out['target_mask'].any(1).astype(np.float32)
    if hasattr(self.plan, 'fresh'):
      out['fresh'] = np.full(batch.size, self.plan.fresh(number))
    return out

  def ids(self, number: int) -> list[str]:
    """The documents of a batch."""
    spans = [span for row in self.plan[number].indices for span in self.plan.spans(int(row))]
    return list(dict.fromkeys(self.text.ids[self.text.document(span.start)] for span in spans))


def check_stream(config, is_language_model: bool, devices: int, processes: int) -> None:
  """UserError where running text cannot be read as data.stream says.

  `is_language_model`: the model reads no other input.
  """
  data = config.data
  head = config.model.head.name
  parts = devices * config.train.accumulate
  stream = one_of('data.stream', data.stream, PLANS)
  for ok, wrong in (
    (
      is_language_model,
      f'data.stream={stream!r}: running text is for the task language_model without encoders.',
    ),
    (
      (stream == 'continuous') == (head == 'lstm'),
      f"data.stream={stream!r} with model.head.name={head!r}: 'continuous' is for the head 'lstm', and it for that.",
    ),
    (
      stream != 'continuous' or not config.train.batch_size % parts,
      f'train.batch_size={config.train.batch_size}: the lanes of data.stream={stream!r} keep their states on their devices, choose a multiple of {parts} ({devices} devices times train.accumulate={config.train.accumulate}).',
    ),
    (
      stream != 'continuous' or processes == 1,
      f'data.stream={stream!r}: lanes are read by one process, and there are {processes}. Choose another stream, or one host.',
    ),
    (
      stream != 'packed' or data.across or head == 'transformer_decoder',
      f"data.across=False: the head {head!r} cannot keep packed documents apart, 'transformer_decoder' can.",
    ),
    (
      not any(data.languages.values()),
      f"data.languages={data.languages.to_dict()}: running text is read as it is, set both to ''.",
    ),
    (
      not config.train.batch_tokens,
      'train.batch_tokens: rows of running text have one length, set it to 0 and choose train.batch_size.',
    ),
    (
      0 <= config.evaluate.stride <= data.max_length,
      f'evaluate.stride={config.evaluate.stride}: expected 0 to data.max_length={data.max_length}.',
    ),
  ):
    if not ok:
      raise UserError(wrong)
