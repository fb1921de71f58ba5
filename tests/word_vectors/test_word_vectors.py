"""Word vectors from the files of GloVe, word2vec and fastText."""

import struct

import numpy as np
import pytest

from mmlm.pretrained.formats.vector_files import embedding_table, read_vectors
from mmlm.utils.errors import UserError

WORDS = ['the', 'Hund', 'läuft', '.']
ARRAY = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)


def lines(words=WORDS, array=ARRAY):
  result = []
  for word, row in zip(words, array):
    result.append(f'{word} ' + ' '.join(f'{value:.7f}' for value in row))
  return result


def binary(words=WORDS, array=ARRAY, header=None):
  body = b''.join(word.encode() + b' ' + row.tobytes() + b'\n' for word, row in zip(words, array))
  return (header or f'{len(words)} {array.shape[1]}').encode() + b'\n' + body


def fnv(text):
  value = 2166136261
  for byte in text.encode():
    value = ((value ^ int(np.int8(np.uint8(byte)).astype(np.int64)) % 2**32) * 16777619) % 2**32
  return value


def fasttext(words=WORDS, buckets=7, shortest=2, longest=3, label='__label__x'):
  matrix = np.random.default_rng(1).normal(size=(len(words) + buckets, 5)).astype(np.float32)
  entries = (
    b''.join(word.encode() + b'\0' + struct.pack('<qb', 3, 0) for word in words)
    + label.encode()
    + b'\0'
    + struct.pack('<qb', 1, 1)
  )
  settings = struct.pack(
    '<ii12id', 793712314, 12, 5, 5, 1, 1, 5, 1, 1, 1, buckets, shortest, longest, 100, 1e-4
  )
  dictionary = struct.pack('<iiiqq', len(words) + 1, len(words), 1, 99, -1)
  return settings + dictionary + entries + struct.pack(
    '<?qq', False, *matrix.shape
  ) + matrix.tobytes(), matrix


@pytest.mark.parametrize(
  'name, content',
  [
    ('glove.txt', '\n'.join(lines()) + '\n'),
    ('word2vec.txt', '\n'.join(['4 5', *lines()])),
    ('fasttext.vec', '\n'.join(['4 5', *(line + ' ' for line in lines())])),
    ('word2vec.bin', binary()),
  ],
)
def test_every_format_gives_the_same_vectors(tmp_path, name, content):
  path = tmp_path / name
  path.write_bytes(content if isinstance(content, bytes) else content.encode())
  vectors = read_vectors(str(path))
  assert list(vectors.words) != [] and vectors.width == 5
  for word, row in zip(WORDS, ARRAY):
    np.testing.assert_allclose(vectors.get(word), row, atol=1e-6)
  assert vectors.get('cat') is None
  np.testing.assert_allclose(vectors.get('THE'), ARRAY[0], atol=1e-6)  # in lower case


def test_a_word_with_a_space_is_one_word(tmp_path):
  (tmp_path / 'a.txt').write_text('\n'.join(lines(['x', '. . .', 'y', 'z'])))
  np.testing.assert_allclose(
    read_vectors(str(tmp_path / 'a.txt')).get('. . .'), ARRAY[1], atol=1e-6
  )


def test_fasttext_makes_words_of_their_pieces(tmp_path):
  data, matrix = fasttext()
  (tmp_path / 'a.bin').write_bytes(data)
  vectors = read_vectors(str(tmp_path / 'a.bin'))

  def pieces(word):
    result = []
    for i in range(len(word) + 2):
      for n in (2, 3):
        if i + n <= len(word) + 2:
          result.append(f'<{word}>'[i : i + n])
    return result

  def rows(word):
    return [4 + fnv(piece) % 7 for piece in pieces(word)]

  np.testing.assert_allclose(vectors.get('läuft'), matrix[[2, *rows('läuft')]].mean(0), atol=1e-6)
  np.testing.assert_allclose(vectors.get('läufe'), matrix[rows('läufe')].mean(0), atol=1e-6)
  assert '__label__x' not in vectors.words


def test_the_table_of_a_vocabulary(tmp_path, capsys):
  (tmp_path / 'a.txt').write_text('\n'.join(lines()))
  table = embedding_table(read_vectors(str(tmp_path / 'a.txt')), ['cat', 'hund', 'the', 'Hund'])
  np.testing.assert_allclose(table[[2, 3]], ARRAY[:2], atol=1e-6)
  assert np.abs(table[:2]).max() > 0 and table.shape == (4, 5)
  assert '2 of the 4 words' in capsys.readouterr().out


@pytest.mark.parametrize(
  'name, content, says',
  [
    ('a.txt', '\n'.join(['9 5', *lines()]), 'header says 9 words, there are 4'),
    ('a.txt', '\n'.join(['4 6', *lines()]), 'line 2: expected a word and 6 numbers'),
    ('a.txt', '\n'.join([*lines()[:3], lines()[3][:-20]]), 'line 4: expected a word and 5 numbers'),
    ('a.txt', '\n'.join([*lines()[:2], 'x 1 2 three 4 5']), 'line 3'),
    ('a.txt', 'hello\nyou\n', 'line 1 is neither'),
    ('a.txt', 'x 1 nan 3\n', 'row 1 has a value that is not finite'),
    ('a.bin', binary()[:-9], 'ends within word 4 of 4'),
    ('a.bin', binary(header='x y'), 'the header is'),
    ('a.bin', fasttext()[0][:-8], 'a.bin'),
  ],
)
def test_bad_files_are_named(tmp_path, name, content, says):
  path = tmp_path / name
  path.write_bytes(content if isinstance(content, bytes) else content.encode())
  with pytest.raises(UserError, match=says) as error:
    read_vectors(str(path))
  assert str(path) in str(error.value)


def test_no_file_and_no_package():
  with pytest.raises(UserError, match='no such file'):
    read_vectors('nowhere.txt')
