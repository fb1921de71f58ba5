import json
import pickle
import subprocess
import sys

import pytest

from mmlm.data.tokenizers.special_tokens import SpecialTokens
from mmlm.data.tokenizers.tokenizer import Tokenizer
from mmlm.data.tokenizers.train_tokenizer import train_tokenizer
from mmlm.utils.errors import UserError

BOS = SpecialTokens().bos_id
EOS = SpecialTokens().eos_id
PAD = SpecialTokens().pad_id
UNK = SpecialTokens().unk_id

TEXTS = [
  'A dog runs, then sleeps.',
  'two dogs run through the snow',
  "a man's red hat",
  'the man sleeps in the snow',
  'a dog in a red hat',
] * 4
CHINESE = ['一条狗在雪地里奔跑。', '一个男人戴着红色的帽子。', '狗在睡觉。'] * 4
KINDS = ('bpe', 'subword', 'unigram', 'word', 'char')


def trained(kind, texts=TEXTS, **options):
  return train_tokenizer(texts, kind, 300 if kind == 'bpe' else 120, **options)


@pytest.mark.parametrize('kind', KINDS)
def test_text_survives_and_ids_are_those_of_words(kind):
  tokenizer = trained(kind)
  text = 'a dog sleeps in the snow'
  ids = tokenizer.encode(text)
  assert tokenizer.decode(ids) == text
  assert all(UNK < i < tokenizer.vocab_size for i in ids)
  assert tokenizer.decode([BOS, *ids, EOS, ids[0], PAD]) == text
  assert tokenizer.encode_batch([text, 'a']) == [ids, tokenizer.encode('a')]
  assert tokenizer.encode('') == [] and tokenizer.decode([]) == ''


@pytest.mark.parametrize('kind', ('bpe', 'unigram', 'char'))
def test_chinese(kind):
  tokenizer = train_tokenizer(CHINESE, kind, 320)
  assert [tokenizer.decode(row) for row in tokenizer.encode_batch(CHINESE)] == CHINESE
  assert UNK not in tokenizer.encode(CHINESE[0])


def test_bpe_knows_every_text():
  assert trained('bpe').decode(trained('bpe').encode('Zürich, 東京 🐕')) == 'Zürich, 東京 🐕'


def test_word_splits_punctuation_and_knows_the_unknown():
  tokenizer = trained('word')
  assert (
    tokenizer.decode(tokenizer.encode("a man's hat, the snow.")) == "a man ' s hat , the snow ."
  )
  assert tokenizer.encode('zebra') == [UNK]
  rare = trained('word', TEXTS + ['zebra'], min_frequency=2)
  assert rare.encode('zebra') == [UNK] and rare.encode('dog') != [UNK]


@pytest.mark.parametrize('kind', KINDS)
def test_the_name_of_a_special_token_in_a_text_is_text(kind):
  tokenizer = trained(kind, TEXTS + ['< eos > <eos> </s>'] * 9)
  for text in ('<eos>', '< eos >', '</s>', 'a < pad > b'):
    assert not {PAD, BOS, EOS} & set(tokenizer.encode(text))


@pytest.mark.parametrize('kind', KINDS)
def test_lowercase(kind):
  tokenizer = trained(kind, lowercase=True)
  assert tokenizer.encode('A DOG') == tokenizer.encode('a dog')
  assert trained(kind).encode('A dog') != trained(kind).encode('a dog')


@pytest.mark.parametrize('kind', KINDS)
def test_saved_and_pickled_are_the_same(kind, tmp_path):
  tokenizer = trained(kind, lowercase=True)
  tokenizer.save(tmp_path / 'tokenizer.json')
  for other in (Tokenizer.load(tmp_path / 'tokenizer.json'), pickle.loads(pickle.dumps(tokenizer))):
    assert other.vocab_size == tokenizer.vocab_size
    for text in ('A dog <eos>', 'two dogs'):
      assert other.encode(text) == tokenizer.encode(text)
      assert other.decode(other.encode(text)) == tokenizer.decode(tokenizer.encode(text))


def test_training_is_deterministic_between_processes(tmp_path):
  code = (
    'import sys, json; from mmlm.data.tokenizers.train_tokenizer import train_tokenizer\n'
    'texts = json.loads(sys.argv[1])\n'
    'for kind in ("bpe", "subword", "unigram", "word", "char"):\n'
    '  train_tokenizer(texts, kind, 310).save(f"{sys.argv[2]}/{kind}.json")'
  )
  texts = TEXTS + [f'the {a}{b} of {b}{a}' for a in 'abcdefgh' for b in 'stuvwxyz']
  subprocess.run([sys.executable, '-c', code, json.dumps(texts), str(tmp_path)], check=True)
  for kind in KINDS:
    train_tokenizer(texts, kind, 310).save(tmp_path / 'here.json')
    assert (tmp_path / 'here.json').read_bytes() == (tmp_path / f'{kind}.json').read_bytes(), kind


@pytest.mark.parametrize('kind', KINDS)
def test_vocabulary_is_bounded(kind):
  assert train_tokenizer(TEXTS, kind, 280).vocab_size <= 280


@pytest.mark.parametrize(
  'call, says',
  [
    (lambda: train_tokenizer(TEXTS, 'unigrm'), "'unigram'"),
    (lambda: train_tokenizer(TEXTS, 'bpe', 100), 'at least 260'),
    (
      lambda: train_tokenizer(['ab ba cb'], 'subword', 8),
      'vocab_size=8.*subword of these texts needs at least 9',
    ),
    (lambda: train_tokenizer(['', ' ']), 'no text'),
    (lambda: train_tokenizer(CHINESE, 'unigram', 12), '12'),
  ],
)
def test_bad_input(call, says):
  with pytest.raises(UserError, match=says):
    call()


def test_a_bad_file_is_named(tmp_path):
  (tmp_path / 'a.json').write_text('{"kind": "bpe", "tokenizer": {}}')
  (tmp_path / 'b.json').write_text('{"kind"')
  for name in ('a.json', 'b.json', 'c.json'):
    with pytest.raises(UserError, match=name):
      Tokenizer.load(tmp_path / name)
