"""Word vectors: text, windows, updates of rows, pieces of words."""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmlm.data.sources.plain_text import PlainTexts
from mmlm.pretrained.formats.subwords import piece_hashes
from mmlm.training.step import TrainState
from mmlm.utils.errors import UserError
from mmlm.word_vectors.context_windows import Subwords, WindowLoader, WindowPlan
from mmlm.word_vectors.cooccurrence import PairLoader, PairPlan, count_cooccurrences
from mmlm.word_vectors.objectives import Cbow, Glove, SkipGram
from mmlm.word_vectors.sparse_step import RowOptions, initial_optimizer_state, row_step
from mmlm.word_vectors.vocabulary import Vocabulary, count_words, sentences_of

RNG = np.random.default_rng(0)
WORDS = [f'w{i}' for i in range(40)]
SENTENCES = [
  [WORDS[i] for i in np.minimum(RNG.zipf(1.5, RNG.integers(1, 20)) - 1, 39)] for _ in range(60)
]
SMALL = dict(
  window=3,
  row=4,
  shared=6,
  micro_batch=16,
  negatives=5,
  subsample=0.0,
)
DIM = 6


@pytest.fixture(scope='module')
def vocabulary():
  return count_words(SENTENCES, 2, 0, 'text')


@pytest.fixture(scope='module')
def corpus(vocabulary):
  return vocabulary.encode(SENTENCES)


def batch_of(model, corpus, vocabulary, number=0, size=64, pieces=None):
  plan = WindowPlan(corpus, vocabulary.counts, model.subsample, size, 0)
  return WindowLoader(plan, vocabulary.counts, model, pieces)(number, number)


def random_tables(words, rows=None):
  def draw(n):
    return jnp.asarray(RNG.normal(size=(n, DIM)), jnp.float32)

  return {'inputs': draw(rows or words), 'outputs': draw(words)}


def micro_batches(model, batch):
  prepared = model.prepare(batch)
  result = []
  for m in range(len(batch['left'])):
    result.append({name: value[m] for name, value in prepared.items()})
  return result


# Words


def test_the_vocabulary_is_what_is_frequent_enough(vocabulary):
  counts = collections.Counter(word for sentence in SENTENCES for word in sentence)
  assert dict(zip(vocabulary.words, vocabulary.counts.tolist())) == {
    word: n for word, n in counts.items() if n >= 2
  }
  assert (np.diff(vocabulary.counts) <= 0).all()
  assert len(count_words(SENTENCES, 2, 5, 'text').words) == 5


def test_unknown_words_are_left_out_before_windows(corpus, vocabulary):
  sentences = [corpus.ids[a:b].tolist() for a, b in zip(corpus.starts, corpus.starts[1:])]
  expected = []
  for sentence in SENTENCES:
    expected.append([vocabulary.words.index(word) for word in sentence if word in vocabulary.words])
  assert sentences == [row for row in expected if row]


def test_an_empty_vocabulary_is_reported():
  with pytest.raises(
    UserError,
    match=r'no word occurs 9 times or more \(tokenizer.min_frequency\), '
    "the vocabulary is empty: 'a' 2 times, 'b' 1 times",
  ):
    count_words([['a', 'b', 'a']], 9, 0, 'text')


def test_a_vocabulary_is_read_back(vocabulary, tmp_path):
  vocabulary.save(tmp_path / 'v.json')
  again = Vocabulary.load(tmp_path / 'v.json')
  assert again.words == vocabulary.words and again.fingerprint == vocabulary.fingerprint
  assert count_words(SENTENCES, 3, 0, 'text').fingerprint != again.fingerprint
  (tmp_path / 'v.json').write_text('{}')
  with pytest.raises(UserError, match='v.json: not the vocabulary'):
    Vocabulary.load(tmp_path / 'v.json')


def test_text_comes_from_files_folders_and_manifests(tmp_path):
  (tmp_path / 'b.txt').write_text('The end.\n\nof ALL\n')
  (tmp_path / 'a.txt').write_text('Hello  you')
  source = PlainTexts(str(tmp_path), {})
  assert [*sentences_of(source)] == [['hello', 'you'], ['the', 'end.'], ['of', 'all']]
  assert [*sentences_of(source, 'en', lowercase=False)][1] == ['The', 'end', '.']
  assert [*sentences_of([{'id': '0', 'targets': ('a b', 'c')}])] == [['a', 'b'], ['c']]
  (tmp_path / 'a.txt').write_bytes(b'fine\nnot \xff\n')
  with pytest.raises(UserError, match=r'a.txt, line 2: byte 5 is no UTF-8'):
    PlainTexts(str(tmp_path), {})


# Windows


def pairs_of(batch, window):
  """Counts (word around, word in the middle) of the windows of a batch, word after word."""
  found = collections.Counter()
  for words, left, right in zip(
    *(batch[name].reshape(-1, batch[name].shape[-1]) for name in ('words', 'left', 'right'))
  ):
    for t in range(len(left)):
      for h in range(t + window - int(left[t]), t + window + int(right[t]) + 1):
        if h != t + window:
          found[int(words[h]), int(words[t + window])] += 1
  return found


def test_windows_are_those_of_the_sentences(corpus, vocabulary):
  """With window 1 nothing is random.

  An epoch's pairs are all neighbours, across rows and batches, and never across sentences.
  """
  model = SkipGram(**SMALL | {'window': 1})
  plan = WindowPlan(corpus, vocabulary.counts, 0.0, 64, 0)
  loader = WindowLoader(plan, vocabulary.counts, model)
  found = sum(
    (pairs_of(loader(i, i), 1) for i in range(plan.steps_per_epoch, 2 * plan.steps_per_epoch)),
    collections.Counter(),
  )
  expected = collections.Counter()
  for a, b in zip(corpus.starts, corpus.starts[1:]):
    for left, right in zip(corpus.ids[a:b].tolist(), corpus.ids[a + 1 : b].tolist()):
      expected[left, right] += 1
      expected[right, left] += 1
  assert found == expected


def test_reaches_are_drawn_evenly_and_end_with_the_sentence(vocabulary):
  corpus = vocabulary.encode([WORDS[:10] * 1000])
  batch = batch_of(
    SkipGram(**SMALL),
    corpus,
    vocabulary,
    number=1,
    size=2048,
  )
  shares = np.bincount(batch['left'].ravel(), minlength=4)[1:] / batch['left'].size
  np.testing.assert_allclose(shares, 1 / 3, atol=0.04)
  np.testing.assert_array_equal(batch['left'], batch['right'])
  assert batch_of(SkipGram(**SMALL), corpus, vocabulary, size=2048)['left'].ravel()[0] == 0


def test_the_text_is_read_in_its_order(vocabulary, corpus):
  np.testing.assert_array_equal(
    WindowPlan(corpus, vocabulary.counts, 0.0, 64, 0).epoch(2)[0], corpus.ids
  )


def test_frequent_words_are_left_out_as_often_as_word2vec_does(vocabulary):
  corpus = vocabulary.encode(SENTENCES * 50)
  plan = WindowPlan(corpus, vocabulary.counts, 0.01, 64, 0)
  ids, before, after = plan.epoch(3)
  share = vocabulary.counts / vocabulary.counts.sum()
  stays = np.minimum(1, (np.sqrt(share / 0.01) + 1) * 0.01 / share)
  np.testing.assert_allclose(
    np.bincount(ids)[:4] / np.bincount(corpus.ids)[:4], stays[:4], atol=0.05
  )
  assert len(ids) <= plan.steps_per_epoch * 64 and stays[0] < 0.5
  assert (before[1:][before[1:] > 0] == before[:-1][before[1:] > 0] + 1).all() and (
    after[before == 0] >= 0
  ).all()


def test_negatives_are_drawn_by_the_power_of_counts(vocabulary, corpus):
  batch = batch_of(SkipGram(**SMALL | {'shared': 4000}), corpus, vocabulary)
  expected = vocabulary.counts**0.75 / (vocabulary.counts**0.75).sum()
  negatives = batch['negatives'].ravel()

  def numbers(words):
    return np.bincount(words, minlength=len(expected))

  assert (
    np.abs(numbers(negatives) - negatives.size * expected) < 2
  ).all()  # stratified: chance has no say in the sums
  half = negatives.size // 2
  np.testing.assert_allclose(
    numbers(negatives[:half]) / half, expected, atol=0.02
  )  # but in the order


def test_words_that_stand_often_in_an_update_are_scaled_down(vocabulary, corpus):
  model = SkipGram(**SMALL | {'limit': 2.0})
  plan = WindowPlan(corpus, vocabulary.counts, 0.0, 64, 0)
  batch = WindowLoader(plan, vocabulary.counts, model, pull=0.5)(0, 0)
  shares = np.maximum(
    vocabulary.counts / vocabulary.counts.sum(),
    vocabulary.counts**0.75 / (vocabulary.counts**0.75).sum(),
  )
  expected = np.minimum(1, 2.0 / (0.5 * 16 * shares))
  assert expected[0] < 1 == expected[-1]
  np.testing.assert_allclose(batch['scales'], expected[batch['words']], rtol=1e-5)
  np.testing.assert_allclose(batch['negative_scales'], expected[batch['negatives']], rtol=1e-5)
  plain = {name: value for name, value in batch.items() if 'scales' not in name}
  tables = random_tables(len(vocabulary.words))
  found, whole = (
    jax.jit(model.gradients)(tables, micro_batches(model, some)[0]) for some in (batch, plain)
  )
  for name in tables:
    scaled = np.asarray(whole.gradients[name]) * expected[np.asarray(whole.rows[name])][:, None]
    np.testing.assert_allclose(
      found.gradients[name],
      scaled,
      rtol=1e-4,
      atol=1e-6,
    )
  for still in ({'limit': 0.0}, {'limit': 1e9}):
    assert 'scales' not in WindowLoader(
      plan, vocabulary.counts, SkipGram(**SMALL | still), pull=0.5
    )(0, 0)


def test_a_batch_depends_on_its_number_alone(vocabulary, corpus):
  model = SkipGram(**SMALL | {'subsample': 0.02})
  one, two, other = (batch_of(model, corpus, vocabulary, number) for number in (7, 7, 8))
  assert (
    all((one[name] == two[name]).all() for name in one) and (one['words'] != other['words']).any()
  )


# Updates


def summed(table, rows, gradients):
  """The gradient of a whole table."""
  total = np.zeros(np.shape(table), np.float32)
  np.add.at(total, np.asarray(rows), np.asarray(gradients))
  return total


def loss_by_hand(kind, tables, words, micro, model):
  """The loss of one micro-batch.

  What each example reads is a mean over words, found one by one, each of which has the gradient of
  the mean.
  """
  sums = []
  sizes = []
  middles = []
  rows = []
  for g, row in enumerate(words):
    for t in range(model.row):
      middle = t + model.window
      around = []
      for h in range(middle - int(micro['left'][g, t]), middle + int(micro['right'][g, t]) + 1):
        if h != middle:
          around.append(row[h])
      for some in ([around] if kind is Cbow else [[word] for word in around]) if around else []:
        sums.append(np.bincount(some, minlength=len(tables['inputs'])))
        sizes.append(len(some))
        middles.append(row[middle])
        rows.append(g)
  x = np.float32(sums) @ tables['inputs']
  x += jax.lax.stop_gradient(x / np.array(sizes)[:, None] - x)
  hits = (x * tables['outputs'][np.array(middles)]).sum(-1)
  misses = (x[:, None] * tables['outputs'][micro['negatives'][np.array(rows)]]).sum(-1)
  return (
    -jax.nn.log_sigmoid(hits).sum()
    - model.negatives / model.shared * jax.nn.log_sigmoid(-misses).sum()
  )


@pytest.mark.parametrize('kind', [SkipGram, Cbow])
def test_gradients_of_rows_are_those_of_the_loss(kind, vocabulary, corpus):
  model = kind(**SMALL | {'micro_batch': 8})
  batch = batch_of(
    model,
    corpus,
    vocabulary,
    number=1,
    size=8,
  )
  tables, (micro,) = random_tables(len(vocabulary.words)), micro_batches(model, batch)

  def by_hand(tables):
    return loss_by_hand(kind, tables, batch['words'][0], micro, model)

  loss, expected = jax.jit(jax.value_and_grad(by_hand))(tables)
  found = jax.jit(model.gradients)(tables, micro)
  np.testing.assert_allclose(found.loss, loss, rtol=1e-5)
  for name, table in tables.items():
    np.testing.assert_allclose(
      summed(table, found.rows[name], found.gradients[name]), expected[name], atol=1e-4
    )


def test_glove_is_the_weighted_least_squares_of_the_paper():
  model = Glove(x_max=3.0, micro_batch=4)
  tables = {
    name: jnp.asarray(RNG.normal(size=(5, 4)), jnp.float32) for name in ('inputs', 'outputs')
  }
  batch = {
    'rows': np.array([0, 1, 1, 0]),
    'columns': np.array([2, 3, 2, 0]),
    'values': np.float32([1, 2, 7, 0]),
  }

  def by_hand(tables):
    total = 0.0
    for i, j, x in [(0, 2, 1.0), (1, 3, 2.0), (1, 2, 7.0)]:
      w = tables['inputs'][i]
      c = tables['outputs'][j]
      total += 0.5 * min(1, x / 3) ** 0.75 * (w[:3] @ c[:3] + w[3] + c[3] - np.log(x)) ** 2
    return total

  loss, expected = jax.jit(jax.value_and_grad(by_hand))(tables)
  found = jax.jit(model.gradients)(tables, batch)
  np.testing.assert_allclose(found.loss, loss, rtol=1e-5)
  assert int(found.weight) == 3
  for name, table in tables.items():
    np.testing.assert_allclose(
      summed(table, found.rows[name], found.gradients[name]), expected[name], atol=1e-5
    )


def test_cooccurrences_are_counted_as_one_by_one(corpus, vocabulary, monkeypatch):
  monkeypatch.setattr('mmlm.word_vectors.cooccurrence._BLOCK', 37)
  expected = collections.Counter()
  for a, b in zip(corpus.starts, corpus.starts[1:]):
    for i in range(a, b):
      for j in range(max(a, i - 4), min(b, i + 5)):
        if i != j:
          expected[int(corpus.ids[i]), int(corpus.ids[j])] += 1 / abs(i - j)
  found = count_cooccurrences(corpus, len(vocabulary.words), 4)
  assert {
    (i, j): pytest.approx(x, rel=1e-5) for i, j, x in zip(*map(np.ndarray.tolist, found))
  } == dict(expected)
  plan = PairPlan(found, 100, 64, 0)
  batches = [PairLoader(plan, 16)(number, number) for number in range(plan.steps_per_epoch)]
  assert sum(batch['values'].sum() for batch in batches) == pytest.approx(
    found.values.sum(), rel=1e-4
  )
  assert sum(batch['weight'][0] for batch in batches) == pytest.approx(100)


@functools.cache
def stepping(model, skip=False):
  return jax.jit(functools.partial(row_step, options=RowOptions(model, lambda step: 0.1, skip)))


def step_of(model, tables, batch, skip=False):
  state = TrainState(
    jnp.zeros((), jnp.int32),
    tables,
    initial_optimizer_state(tables, model.optimizer),
    (),
    jnp.zeros(2, jnp.uint32),
  )
  return stepping(model, skip)(state, batch)


def test_a_step_is_its_updates_one_after_another(vocabulary, corpus):
  model = SkipGram(**SMALL)
  tables = random_tables(len(vocabulary.words))
  batch = batch_of(model, corpus, vocabulary)
  state, metrics = step_of(model, tables, batch)
  losses = 0.0
  pairs = 0.0
  gradients = jax.jit(model.gradients)
  for micro in micro_batches(model, batch):
    found = gradients(tables, micro)
    tables = {
      name: table.at[found.rows[name]].add(-0.1 * found.gradients[name])
      for name, table in tables.items()
    }
    losses = losses + found.loss
    pairs = pairs + found.weight
  for name, table in tables.items():
    np.testing.assert_allclose(
      state.params[name],
      table,
      rtol=2e-4,
      atol=1e-5,
    )
  assert int(state.step) == 1 and float(metrics['weight']) == pairs
  np.testing.assert_allclose(metrics['loss'], losses / pairs, rtol=1e-5)


def test_adagrad_divides_by_what_was_before():
  model = Glove(micro_batch=2)
  tables = {}
  for name in ('inputs', 'outputs'):
    tables[name] = jnp.asarray(RNG.normal(size=(3, 4)), jnp.float32)
  batch = {
    'rows': np.array([[0, 0]]),
    'columns': np.array([[1, 2]]),
    'values': np.float32([[4, 5]]),
  }
  state, _ = step_of(model, tables, batch)
  found = jax.jit(model.gradients)(tables, {name: value[0] for name, value in batch.items()})
  gradients = found.gradients['inputs']
  np.testing.assert_allclose(
    state.params['inputs'][0], tables['inputs'][0] - 0.1 * gradients.sum(0), rtol=1e-5
  )
  np.testing.assert_allclose(state.opt_state['inputs'][0], 1 + (gradients**2).sum(0), rtol=1e-5)
  again, _ = step_of(model, state.params, batch)  # with fresh sums, which are smaller

  def moved(after, before):
    return np.abs(after['inputs'][0] - before['inputs'][0])

  later, _ = stepping(model)(state, batch)
  assert (moved(later.params, state.params) < moved(again.params, state.params)).all()


def test_an_update_that_is_not_finite_is_skipped():
  model = Glove(micro_batch=2)
  tables = {name: jnp.ones((3, 4)) for name in ('inputs', 'outputs')}
  batch = {
    'rows': np.array([[0, 0]]),
    'columns': np.array([[1, 2]]),
    'values': np.float32([[4, 5]]),
  }
  good, metrics = step_of(model, tables, batch, skip=True)
  assert np.isfinite(metrics['loss']) and (good.params['inputs'] != 1).any()
  bad, metrics = step_of(model, tables, batch | {'values': np.float32([[4, np.nan]])}, skip=True)
  assert not np.isfinite(metrics['loss']) and bad.step == 1
  jax.tree.map(np.testing.assert_array_equal, bad.params, tables)


# Pieces of words


def test_pieces_are_hashed_as_fasttext_does():
  def fnv(text):
    value = 2166136261
    for byte in text.encode():
      value = ((value ^ (byte if byte < 128 else byte + 0xFFFFFF00)) * 16777619) % 2**32
    return value

  marked = '<läuft>'
  assert piece_hashes('läuft', 3, 6) == [
    fnv(marked[i : i + n]) for i in range(7) for n in range(3, 7) if i + n <= 7
  ]
  assert piece_hashes('a', 1, 2) == [fnv('<a'), fnv('a'), fnv('a>')]


def test_words_are_the_mean_of_their_pieces(vocabulary, corpus):
  """The same batch with the vector of each word made beforehand.

  Each part gets the whole gradient.
  """
  words, rows = len(vocabulary.words), len(vocabulary.words) + 5
  parts = [np.array([i, *(words + RNG.integers(0, 5, i % 4))]) for i in range(words)]
  pieces = Subwords(np.concatenate(parts), np.cumsum([0, *map(len, parts)]))
  model = SkipGram(**SMALL, longest=6)
  tables = random_tables(words, rows)
  with_pieces = batch_of(model, corpus, vocabulary, pieces=pieces)
  plain = batch_of(model, corpus, vocabulary)
  whole = {
    'inputs': jnp.stack([tables['inputs'][part].mean(0) for part in parts]),
    'outputs': tables['outputs'],
  }
  micro = micro_batches(model, with_pieces)[0]
  found = jax.jit(model.gradients)(tables, micro)
  expected = jax.jit(model.gradients)(whole, micro_batches(model, plain)[0])
  np.testing.assert_allclose(found.loss, expected.loss, rtol=1e-5)
  of_words = summed(whole['inputs'], expected.rows['inputs'], expected.gradients['inputs'])
  spread = sum(
    summed(tables['inputs'], part, np.tile(of_words[i], (len(part), 1)))
    for i, part in enumerate(parts)
  )
  np.testing.assert_allclose(
    summed(tables['inputs'], found.rows['inputs'], found.gradients['inputs']), spread, atol=1e-4
  )
