"""Running text: how it is read, cut into rows and counted. No model."""

import lzma

import numpy as np
import pytest

from mmlm.data.datasets import preparation
from mmlm.data.running_text import (
  Lanes,
  ListedSequences,
  RandomWindows,
  Span,
  StreamLoader,
  best_fit,
  evaluation_plan,
  pack_documents,
  read_running_text,
  sliding_windows,
)
from mmlm.data.sources.plain_text import PlainTexts
from mmlm.data.sources.tfds_source import TfdsSource
from mmlm.data.tokenizers.special_tokens import SpecialTokens
from mmlm.data.tokenizers.tokenizer import Tokenizer
from mmlm.data.tokenizers.train_tokenizer import MASK_PIECE as MASK
from mmlm.data.tokenizers.train_tokenizer import SPECIAL_PIECES as SPECIALS
from mmlm.data.tokenizers.train_tokenizer import train_tokenizer
from mmlm.evaluation.metrics import METRICS
from mmlm.evaluation.metrics.language_metrics import BLOCK, stretches
from mmlm.evaluation.metrics.metric import Unavailable
from mmlm.utils.errors import UserError

BOS = SpecialTokens().bos_id
EOS = SpecialTokens().eos_id
UNK = SpecialTokens().unk_id

DOCUMENTS = ('ab a\n', 'c', 'abc abc  cab', 'ba')


def source(documents=DOCUMENTS):
  return [{'id': f'd{i}', 'targets': (text,)} for i, text in enumerate(documents)]


def characters(documents=DOCUMENTS, **options):
  return train_tokenizer(documents, 'char', 100, exact=True, **options)


def text_of(documents=DOCUMENTS, ends=True, tokenizer=None):
  return read_running_text(source(documents), tokenizer or characters(documents), ends, 'here')


# Texts


@pytest.mark.parametrize('kind', ['char', 'bpe'])
def test_an_exact_tokenizer_gives_every_space_back(kind, tmp_path):
  texts = [' a  b\n\n', '\tnaïve\r\n', 'e\u0301 é', '日本 語', ' ']
  tokenizer = train_tokenizer(texts, kind, 400, exact=True)
  tokenizer.save(tmp_path / 'tokenizer.json')
  loaded = Tokenizer.load(tmp_path / 'tokenizer.json')
  assert loaded.decode_batch(loaded.encode_batch(texts)) == texts and loaded.lossless
  assert not train_tokenizer(['a B'], kind, 400, lowercase=True).lossless
  plain = train_tokenizer(texts, kind, 400)
  assert plain.decode_batch(plain.encode_batch([' a  b\n\n'])) == ['a  b']


def test_exact_words_stand_between_spaces():
  tokenizer = train_tokenizer(["don't stop ."], 'word', 100, exact=True)
  assert sorted(tokenizer.pieces[4:]) == sorted(["don't", 'stop', '.']) and not tokenizer.lossless
  with pytest.raises(
    UserError, match="tokenizer.exact: a tokenizer of kind 'unigram' loses spaces"
  ):
    train_tokenizer(['a b'], 'unigram', 100, exact=True)


@pytest.mark.parametrize('kind', ['char', 'bpe', 'word', 'subword', 'unigram'])
def test_a_mask_is_an_id_that_no_text_has(kind):
  texts = ['the cat sat on the mat', 'a dog sat', MASK]
  tokenizer = train_tokenizer(texts, kind, 300 if kind == 'bpe' else 30, mask=True)
  assert tokenizer.pieces[tokenizer.mask_id] == MASK and tokenizer.mask_id >= len(SPECIALS)
  assert all(tokenizer.mask_id not in row for row in tokenizer.encode_batch(texts))
  assert train_tokenizer(texts, kind, 300 if kind == 'bpe' else 30).mask_id is None


@pytest.mark.parametrize('kind, what', [('word', 'word'), ('char', 'character')])
def test_an_empty_vocabulary_is_refused(kind, what):
  with pytest.raises(
    UserError, match=f'tokenizer.min_frequency=3: no {what} of the training texts'
  ):
    train_tokenizer(['a b'], kind, 100, min_frequency=3)


def test_plain_text_is_read_as_it_lies(tmp_path):
  book = tmp_path / 'book.txt'
  folder = tmp_path / 'folder'
  book.write_bytes('\ufeffZeile eins\r\n\nzwei \n'.encode())

  def read(split, **fields):
    return [example['targets'][0] for example in PlainTexts(str(split), fields)]

  assert read(book) == ['Zeile eins\r\n\nzwei \n']
  assert read(book, documents='line') == ['Zeile eins', 'zwei '] and read(
    book, documents='paragraph'
  ) == ['Zeile eins', 'zwei \n']
  whole = read(book)[0]
  assert (
    ''.join(read(f'{book}[:90%]') + read(f'{book}[90%:]')) == whole
    and len(read(f'{book}[:50%]')[0]) == len(whole) // 2
  )
  (folder / 'deep').mkdir(parents=True)
  for name, text in (
    ('b.txt', 'second'),
    ('a.txt', 'first'),
    ('deep/c.txt', 'third'),
    ('d.md', 'not this'),
  ):
    (folder / name).write_text(text)
  (folder / 'e.txt.xz').write_bytes(lzma.compress(b'packed'))
  assert read(folder) == ['first', 'second', 'third', 'packed'] and read(f'{folder}[:50%]') == [
    'first',
    'second',
  ]
  assert PlainTexts(str(book), {'documents': 'line'})[1]['id'] == f'{book}, line 3'


def test_bad_files_are_named_with_their_line(tmp_path):
  path = tmp_path / 'bad.txt'
  path.write_bytes(b'good\nal\xffso\n')
  with pytest.raises(UserError, match=r'bad.txt, line 2: byte 3 is no UTF-8'):
    PlainTexts(str(path), {})
  path.write_text(' \n')
  for split, fields, says in (
    (path, {}, 'no text in it'),
    (tmp_path / 'nowhere.txt', {}, 'No such file'),
    (tmp_path / 'bad.txt[90%:10%]', {}, 'two percentages'),
    (path, {'documents': 'word'}, 'one of file, paragraph, line'),
    (path, {'text': 'x'}, 'data.fields'),
  ):
    with pytest.raises(UserError, match=says):
      PlainTexts(str(split), fields)
  (tmp_path / 'empty').mkdir()
  with pytest.raises(UserError, match=r'no \*.txt in this folder'):
    PlainTexts(str(tmp_path / 'empty'), {})


def test_shakespeare_and_brown_are_read_in_order(tmp_path, shared_data):
  folder = preparation.prepare('tiny_shakespeare', shared_data / 'text' / 'lm', tmp_path)
  parts = [
    TfdsSource(folder, split, {'id': 'id', 'targets': 'text'})[0]['targets'][0]
    for split in ('train', 'valid')
  ]
  assert ''.join(parts) == (shared_data / 'text' / 'lm' / 'tinyshakespeare.txt').read_text() and [
    *map(len, parts)
  ] == [1003854, 111540]
  with lzma.open(shared_data / 'text' / 'lm' / 'brown.txt.xz', 'rt', encoding='utf-8') as file:
    lines = file.read().splitlines()
  (tmp_path / 'brown.txt').write_text('\n'.join(lines[:4000]) + '\n')
  folder = preparation.prepare('brown', tmp_path, tmp_path)
  numbers = {}
  for split in ('train', 'valid', 'test'):
    rows = TfdsSource(folder, split, {'id': 'id', 'targets': 'text'})
    numbers[split] = [int(rows[i]['id'].split()[1]) for i in range(len(rows))]
    assert (
      numbers[split] == sorted(numbers[split])
      and rows[17]['targets'][0] == lines[numbers[split][17] - 1]
    )
  assert sorted(sum(numbers.values(), [])) == list(range(1, 4001)) and [
    len(numbers[split]) for split in ('valid', 'test')
  ] == [200, 200]
  (tmp_path / 'bad').mkdir()
  (tmp_path / 'bad' / 'brown.txt').write_text('a b\n\n')
  with pytest.raises(UserError, match='brown.txt, line 2: empty'):
    preparation.prepare('brown', tmp_path / 'bad', tmp_path / 'other')


# Rows


def test_a_document_is_learned_as_a_sentence_is():
  text = text_of()
  tokenizer = characters()
  rows = [[*row, EOS] for row in tokenizer.encode_batch(DOCUMENTS)]
  assert text.tokens.tolist() == sum(rows, [])
  assert text.inputs.tolist() == sum(([BOS, *row[:-1]] for row in rows), [])
  endless = text_of(ends=False)
  assert EOS not in endless.tokens and endless.inputs[endless.starts[:-1]].tolist() == [BOS] * len(
    DOCUMENTS
  )
  assert [text.document(place) for place in (0, 5, 6, 7, 8)] == [0, 0, 1, 1, 2]
  assert text.first(2).tokens.tolist() == sum(rows[:2], []) and text.first(0) is text


def spans_of(plan, number):
  return [span for row in plan[number].indices for span in plan.spans(int(row))]


@pytest.mark.parametrize('size', [1, 3, 4])
def test_lanes_read_every_token_once_an_epoch_and_go_on(size):
  text = text_of()
  plan = Lanes(text, 3, size, seed=5)
  for epoch in range(3):
    numbers = range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
    read = []
    for number in numbers:
      for span in spans_of(plan, number):
        for place in range(span.start, span.stop):
          read.append(place)
    assert sorted(read) == list(range(len(text.tokens)))
    assert [plan.fresh(number) for number in numbers] == [True] + [False] * (len(numbers) - 1)
    for lane in range(size):
      places = []
      for number in numbers:
        for s in plan.spans(number * size + lane):
          for p in range(s.start, s.stop):
            places.append(p)
      assert all(b == (a + 1) % len(text.tokens) for a, b in zip(places, places[1:]))
  assert [spans_of(plan, 0), spans_of(plan, 1)] != [
    spans_of(plan, plan.steps_per_epoch),
    spans_of(plan, plan.steps_per_epoch + 1),
  ]


def test_windows_lie_anywhere_within_the_text_and_are_drawn_by_number():
  text = text_of()
  plan, again = (RandomWindows(text, 5, 4, seed) for seed in (1, 1))
  starts = np.concatenate([plan[number].indices for number in range(200)])
  assert starts.min() == 0 and starts.max() == len(text.tokens) - 5
  assert np.array_equal(plan[7].indices, again[7].indices) and not np.array_equal(
    plan[7].indices, plan[8].indices
  )
  with pytest.raises(
    UserError, match='here: the whole text has 24 tokens, and a window data.max_length=25'
  ):
    RandomWindows(text, 25, 4, 1)
  with pytest.raises(UserError, match='24 tokens for train.batch_size=25 lanes'):
    Lanes(text, 5, 25, 0)


def test_packed_rows_hold_every_token_once_and_little_air():
  rng = np.random.default_rng(0)
  text = text_of(['a' * size for size in rng.integers(1, 40, 200)])
  rows = pack_documents(text, 16, seed=0)
  read = sorted(place for row in rows for span in row for place in range(span.start, span.stop))
  assert read == list(range(len(text.tokens)))
  assert all(sum(span.stop - span.start for span in row) <= 16 for row in rows)
  assert len(text.tokens) / (16 * len(rows)) > 0.9
  plan = ListedSequences(rows, 16, 8, seed=3)
  order = [row for number in range(len(plan)) for row in plan[number].indices]
  assert sorted(order) == list(range(len(rows))) != order
  assert best_fit([Span(0, 0, 3), Span(3, 3, 5), Span(5, 5, 6)], 3) == [
    [Span(0, 0, 3)],
    [Span(3, 3, 5), Span(5, 5, 6)],
  ]


@pytest.mark.parametrize('begin, end', [(0, 1), (0, 8), (3, 30), (0, 9)])
@pytest.mark.parametrize('stride', [1, 3, 8])
def test_sliding_windows_predict_every_token_once_with_enough_before_it(begin, end, stride):
  spans = sliding_windows(begin, end, 8, stride)
  assert [place for span in spans for place in range(span.first, span.stop)] == list(
    range(begin, end)
  )
  for number, (start, first, stop) in enumerate(spans):
    assert begin <= start <= first < stop and stop - start <= 8
    assert number == 0 or first - start >= min(8 - stride, first - begin)


@pytest.mark.parametrize(
  'stream, apart', [('windows', False), ('continuous', False), ('packed', True)]
)
def test_evaluation_reads_every_token_once_for_any_number_of_rows(stream, apart):
  text = text_of()
  for size in (1, 3, 40):
    plan = evaluation_plan(text, stream, apart, 6, size, 2)
    found = []
    for number in range(len(plan)):
      for span in spans_of(plan, number):
        for place in range(span.first, span.stop):
          found.append(place)
    assert sorted(found) == list(range(len(text.tokens)))
    if apart:
      assert all(
        text.document(span.start) == text.document(span.stop - 1)
        for number in range(len(plan))
        for span in spans_of(plan, number)
      )


def test_a_batch_holds_its_spans():
  text = text_of()
  plan = ListedSequences(
    [[Span(0, 0, 3), Span(6, 7, 8)], [Span(8, 8, 12)], [Span(12, 12, 13)]], 6, 2
  )
  batch = StreamLoader(text, plan, apart=True)(0, plan[0])
  assert (
    batch['target'][0].tolist() == [*text.tokens[:3], *text.tokens[6:8], 0]
    and batch['inputs'][0, 3] == BOS
  )
  assert batch['target_mask'].tolist() == [
    [True] * 3 + [False, True, False],
    [True] * 4 + [False] * 2,
  ]
  assert batch['segments'].tolist() == [[1, 1, 1, 2, 2, 0], [1] * 4 + [0, 0]] and batch[
    'positions'
  ][0].tolist() == [0, 1, 2, 0, 1, 0]
  last = StreamLoader(text, plan)(1, plan[1])
  assert last['weight'].tolist() == [1, 0] and 'segments' not in last and 'fresh' not in last
  assert StreamLoader(text, plan).ids(0) == ['d0', 'd1', 'd2']


# Counts


def values(rows):
  found = {}
  for name in ('perplexity_word', 'bits_per_character', 'nats_per_character', 'bits_per_byte'):
    metric = METRICS[name]
    try:
      found[name] = metric.value(metric.statistics(rows, rows).sum(0))
    except Unavailable:
      continue
  return found


def test_stretches_count_the_text_itself_whatever_the_tokens():
  long = 'ein Wörterbuch  \n für alle\n' * 300
  documents = (long, 'kurz')
  total = 1234.5
  found = {}
  for kind in ('char', 'bpe'):
    text = text_of(
      documents, ends=True, tokenizer=train_tokenizer(documents, kind, 400, exact=True)
    )
    rows = found[kind] = stretches(text, np.full(len(text.tokens), total / len(text.tokens)), True)
    assert sum(row['words'] for row in rows) == len(long.split()) + 1 + 2  # and two ends
    assert sum(row['characters'] for row in rows) == len(long) + 4 + 2
    assert sum(row['bytes'] for row in rows) == len(long.encode()) + 4 + 2
    assert (
      ''.join(row['references'][0] for row in rows) == long + 'kurz'
      and len(rows) == -(-len(long) // BLOCK) + 1
    )
    np.testing.assert_allclose(sum(row['nats'] for row in rows), total)
    assert sum(row['tokens'] for row in rows) == len(text.tokens)
  assert [row['references'] for row in found['char']] == [row['references'] for row in found['bpe']]
  char = values(found['char'])
  bpe = values(found['bpe'])
  np.testing.assert_allclose([char[name] for name in char], [bpe[name] for name in char], rtol=1e-9)
  np.testing.assert_allclose(char['bits_per_character'], total / np.log(2) / (len(long) + 6))
  np.testing.assert_allclose(char['perplexity_word'], np.exp(total / (len(long.split()) + 3)))


def test_words_have_no_characters_to_count():
  tokenizer = train_tokenizer(['a b a b c'], 'word', 100, min_frequency=2, exact=True)
  text = text_of(['a b c', 'b'], tokenizer=tokenizer)
  assert (text.tokens == UNK).sum() == 1
  rows = stretches(text, np.ones(len(text.tokens)), tokenizer.lossless)
  assert set(values(rows)) == {'perplexity_word'} and sum(row['words'] for row in rows) == len(
    text.tokens
  )
  # A character that is not in the vocabulary is no part of the text that has a probability.
  strange = text_of(['ab', 'xa'], tokenizer=characters(['ab']))
  assert 'bits_per_character' not in values(stretches(strange, np.ones(len(strange.tokens)), True))
