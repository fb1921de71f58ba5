"""Moses' rules and the way of a text to ids and back; the real texts are those of Multi30k."""

import json

import pytest

from mmlm.config import load_config
from mmlm.data.sources.parallel_text import read_table
from mmlm.data.text import LANGUAGES, MASK, Texts, moses_detokenize, moses_tokenize, words
from mmlm.data.tokenizers.special_tokens import SpecialTokens
from mmlm.data.tokenizers.tokenizer import Tokenizer
from mmlm.data.tokenizers.train_tokenizer import train_tokenizer, usual_casing
from mmlm.evaluation.metrics.views import moses_words
from mmlm.evaluation.score_predictions import check_reference_words
from mmlm.utils.errors import UserError

UNK = SpecialTokens().unk_id


@pytest.fixture(scope='module')
def sentences(shared_data):
  """{language: 1,000 sentences} of the real test set."""
  rows = read_table(shared_data / 'multi30k' / 'test_2016_flickr.tsv', ('en', 'de', 'fr', 'cs'))
  result = {}
  for language in ('en', 'de', 'fr', 'cs'):
    result[language] = [row[language].strip() for row in rows]
  return result


# Moses' rules


@pytest.mark.parametrize(
  'language, text, wanted',
  [
    ('en', "It's a dog, isn't it?", "It 's a dog , isn 't it ?"),
    ('fr', "L'homme (à gauche) dort.", "L' homme ( à gauche ) dort ."),
    ('de', 'Er sagte: „Ja“ – am 3. Mai.', 'Er sagte : " Ja " - am 3. Mai .'),
    ('en', 'a & b <c> [d]', 'a & b < c > [ d ]'),  # nothing is escaped
    ('en', '', ''),
  ],
)
def test_words_and_punctuation_are_separated(language, text, wanted):
  assert moses_tokenize(text, language) == wanted


def references_of(texts):
  return [{'hypothesis': '', 'references': [text]} for text in texts]


def test_the_references_have_the_published_words(sentences):
  """12,103 words are what published BLEU on test_2016 is computed from; what differs fails."""
  rows = references_of(sentences['de'])
  config = load_config('configs/translation/multi30k.py')
  written = [group[0] for group in moses_words(rows, 'de')[1]]
  assert sum(len(text.split()) for text in written) == 12103
  assert all(text == text.lower() for text in written)
  references = [row['references'] for row in rows]
  check_reference_words(references, 'test_2016', config)
  for changed in (references[:-1], [row['references'] for row in references_of(sentences['en'])]):
    with pytest.raises(UserError, match='test_2016: the references have .* not the 12103'):
      check_reference_words(changed, 'test_2016', config)
  check_reference_words(references[:-1], 'another split', config)


@pytest.mark.parametrize('language', ['en', 'de', 'fr', 'cs'])
def test_sentences_come_back(sentences, language):
  texts = sentences[language]
  assert (
    sum(moses_detokenize(moses_tokenize(text, language), language) == text for text in texts) >= 995
  )


def test_an_unknown_language_is_answered_with_the_nearest():
  for call in (
    lambda: moses_tokenize('x', 'dee'),
    lambda: moses_detokenize('x', 'dee'),
    lambda: words('x', 'dee'),
  ):
    with pytest.raises(UserError, match="language code: no 'dee'. Nearest: 'de' of"):
      call()
  assert words(' as  it,is ', '') == ' as  it,is '  # '' stands for no rules


@pytest.mark.parametrize('language', LANGUAGES)
def test_every_language_has_rules_and_keeps_masks(language):
  written = moses_tokenize(f'{MASK} a-{MASK}, {MASK}.', language)
  assert written.split().count(MASK) == 3 == written.count(MASK)
  assert moses_detokenize(written, language).count(MASK) == 3


# Subwords


TEXTS = [
  'Ein Mann fährt Rad .',
  'Der Hund sieht einen Mann in Berlin .',
  'Frau und Mann und ein Hund in Berlin .',
  'Zwei Hunde rennen am Strand .',
] * 4


def subword(texts=TEXTS, size=90, **options):
  options = {'lowercase': True, 'casing': usual_casing(texts)} | options
  return train_tokenizer(texts, 'subword', size, **options)


def test_subwords_are_parts_of_words_between_spaces():
  tokenizer = subword()
  for text in ('ein mann rennt', 'berlin .', 'strandmann'):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text and UNK not in ids
    assert len(ids) > len(text.split()) or text == 'berlin .'
  # A piece never crosses a space, and one that ends a word is another than the same letters inside
  # of one.
  assert tokenizer.encode('ein mann') == tokenizer.encode('ein') + tokenizer.encode('mann')
  assert tokenizer.encode('mannstrand')[:1] != tokenizer.encode('mann')[:1]
  assert tokenizer.encode('ein 犬') == [*tokenizer.encode('ein'), UNK]


def test_real_sentences_are_whole_after_subwords(sentences):
  """All that lower-casing takes is the case, and joined pieces are the words."""
  texts = [moses_tokenize(text, 'de') for text in sentences['de']]
  tokenizer = subword(texts, 2000, min_frequency=2)
  rows = tokenizer.encode_batch(texts)
  assert tokenizer.decode_batch(rows) == [text.lower() for text in texts]
  assert (
    sum(map(len, rows)) > sum(len(text.split()) for text in texts) and tokenizer.vocab_size == 2000
  )


def test_casing_is_the_usual_one_and_the_first_word_gets_a_capital(tmp_path):
  subword().save(tmp_path / 'tokenizer.json')
  for tokenizer in (subword(), Tokenizer.load(tmp_path / 'tokenizer.json')):
    assert tokenizer.casing == {
      'hund': 'Hund',
      'mann': 'Mann',
      'berlin': 'Berlin',
      'hunde': 'Hunde',
      'rad': 'Rad',
      'strand': 'Strand',
    }
    assert (
      tokenizer.truecase('ein hund in berlin sieht den igel .')
      == 'Ein Hund in Berlin sieht den igel .'
    )
    assert tokenizer.truecase('') == ''
  assert 'casing' in json.loads((tmp_path / 'tokenizer.json').read_text())
  cased = subword(lowercase=False, casing=None)
  assert cased.truecase('ein hund') == 'ein hund' and cased.encode('Mann') != cased.encode('mann')


def test_the_first_word_of_a_text_says_nothing_about_case():
  assert usual_casing(['Ein Hund', 'ein Hund', 'Der ein', 'Hund']) == {'hund': 'Hund'}
  assert usual_casing(['x Weiß', 'x weiß', 'x weiß']) == {}  # the most frequent form decides


def test_texts_go_through_rules_and_tokenizer_and_back():
  side = Texts(subword(), 'de')
  plain = Texts(subword())
  rows = side.encode_batch(['Ein Hund rennt.'])
  assert rows == [subword().encode('ein hund rennt .')] and side.decode_batch(rows) == [
    'ein hund rennt .'
  ]
  assert side.surface('ein hund in berlin .') == 'Ein Hund in Berlin.'
  assert (
    plain.encode_batch(['ein hund.']) != side.encode_batch(['ein hund.'])
    and plain.surface('ein hund .') == 'ein hund .'
  )


def test_real_sentences_come_back_with_their_case(sentences):
  """From what a model writes at best to what a person reads."""
  texts = sentences['de']
  side = Texts(subword([moses_tokenize(text, 'de') for text in texts], 4000), 'de')
  written = side.decode_batch(side.encode_batch(texts))
  surfaces = [side.surface(text) for text in written]
  assert sum(text == text.lower() for text in surfaces) == 0
  assert sum(a == b for a, b in zip(surfaces, texts)) > 800
