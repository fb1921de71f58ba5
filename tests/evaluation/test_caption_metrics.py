import math

import numpy as np
import pytest

from mmlm.evaluation.metrics import METRICS, caption_metrics, meteor
from mmlm.evaluation.metrics.caption_tokens import tokenize_caption
from mmlm.evaluation.score_predictions import Predictions, score_predictions
from mmlm.utils.errors import UserError

TEXT_METRICS = [
  'bleu_1',
  'bleu_2',
  'bleu_3',
  'bleu_4',
  'rouge_l',
  'cider_d',
  'exact_match',
  'word_f1',
]
HYPOTHESES = [
  'a dog runs on the grass',
  'two men sit',
  'a red car',
  'the cat sleeps on a mat today',
]
REFERENCES = [
  ['a dog runs on green grass', 'dogs run'],
  ['two men sit', 'the men are sitting on a bench'],
  ['a blue car drives by', 'red car'],
  ['a cat sleeps', 'the cat lies on a mat'],
]


def score_texts(hypotheses, references, names, samples=1000):
  rows = []
  for text, group in zip(hypotheses, references, strict=True):
    rows.append({'hypothesis': text, 'references': group})
  return score_predictions(Predictions(rows), names, samples)


def value(name, hypotheses, references):
  return score_texts(hypotheses, references, [name], samples=1)[name]['value']


@pytest.mark.parametrize(
  'text, tokens',
  [
    ('A dog, running (fast)!', 'a dog running -lrb- fast -rrb-'),
    ("The man's dogs' toys aren't here", "the man 's dogs toys are n't here"),
    ("I'm sure they can't; we cannot, gonna", "i 'm sure they ca n't we can not gon na"),
    (
      '"T-shirt" of the U.S. at 10:30 -- Mr. J. Smith...',
      't-shirt of the u.s. at 10:30 mr. j. smith',
    ),
    ('It costs $5, 1,000 or 50%?', 'it costs $ 5 1,000 or 50 %'),
    ('don’t “quote” me', "do n't quote me"),
    ('一个女孩，穿Nike鞋。', '一 个 女 孩 穿 nike 鞋'),
    ('  ', ''),
  ],
)
def test_tokens_are_those_of_the_penn_treebank(text, tokens):
  assert tokenize_caption(text) == tokens.split()


def test_published_values(shared_data):
  def lines(name):
    return (shared_data / f'text/caption_metrics/nlgeval_{name}.txt').read_text().splitlines()

  published = {
    'bleu_1': 0.55,
    'bleu_2': 0.428174,
    'bleu_3': 0.284043,
    'bleu_4': 0.201143,
    'rouge_l': 0.522104,
    'cider_d': 1.242192,
  }
  scores = score_texts(lines('hyp'), list(zip(lines('ref1'), lines('ref2'))), list(published))
  assert {name: round(score['value'], 6) for name, score in scores.items()} == published


def test_published_meteor(shared_data):
  def lines(name):
    return (shared_data / f'text/caption_metrics/nlgeval_{name}.txt').read_text().splitlines()

  scores = score_texts(lines('hyp'), list(zip(lines('ref1'), lines('ref2'))), ['meteor'])
  if not scores:
    pytest.skip('no Java or no pycocoevalcap')
  assert round(scores['meteor']['value'], 6) == 0.295797


def test_bleu_by_hand():
  # 3 of 4 words, 1 of 3 pairs; 4 words against 5 in the closest reference.
  hypotheses = ['a cat a dog']
  references = [['a cat and one dog', 'x']]
  brevity = math.exp(1 - 5 / 4)
  assert value('bleu_1', hypotheses, references) == pytest.approx(brevity * 3 / 4)
  assert value('bleu_2', hypotheses, references) == pytest.approx(
    brevity * math.sqrt(3 / 4 * 1 / 3)
  )


def test_bleu_takes_the_shorter_of_two_equally_close_references():
  assert value('bleu_1', ['a b c'], [['a b c d', 'a b']]) == pytest.approx(1)


def test_bleu_sums_counts_over_the_corpus():
  mean = (value('bleu_1', ['a'], [['a']]) + value('bleu_1', ['b c d'], [['x y z']])) / 2
  assert mean == pytest.approx(0.5)
  assert value('bleu_1', ['a', 'b c d'], [['a'], ['x y z']]) == pytest.approx(1 / 4)


def test_rouge_takes_precision_and_recall_from_different_references():
  # "a b" of 3 in the first reference: precision 2/3; all of the second, one word: recall 1.
  precision = 2 / 3
  recall = 1
  weight = 1.44
  expected = (1 + weight) * precision * recall / (recall + weight * precision)
  assert value('rouge_l', ['a b c'], [['a x b y', 'c']]) == pytest.approx(expected)


def test_longest_common_subsequence_equals_the_table_of_the_textbook():
  generator = np.random.default_rng(0)
  for _ in range(50):
    first, second = (generator.integers(0, 4, generator.integers(0, 12)).tolist() for _ in range(2))
    table = np.zeros([len(first) + 1, len(second) + 1], int)
    for i, a in enumerate(first):
      for j, b in enumerate(second):
        table[i + 1, j + 1] = table[i, j] + 1 if a == b else max(table[i, j + 1], table[i + 1, j])
    assert caption_metrics._longest_common_subsequence(first, second) == table[-1, -1]


def test_cider_by_hand():
  # Each image has its own words, so every n-gram weighs log 2; cosines of orders 1 and 2 are 1.
  assert value('cider_d', ['a b', 'x'], [['a b'], ['c d']]) == pytest.approx((10 * 2 / 4 + 0) / 2)
  # "a b a" has "a" twice, clipped to 1: (1 + 1) / (sqrt 5 sqrt 2); one pair of its two; one pair
  # longer.
  cosines = 2 / math.sqrt(10) + 1 / math.sqrt(2)
  expected = 10 / 4 * cosines * math.exp(-1 / 72)
  assert value('cider_d', ['a b a', 'x'], [['a b'], ['c d']]) == pytest.approx(expected / 2)


def test_cider_ignores_words_of_every_image():
  assert value('cider_d', ['a', 'a'], [['a dog'], ['a cat']]) == 0
  assert value('cider_d', ['dog', 'a'], [['a dog'], ['a cat']]) > 0


@pytest.mark.parametrize('name', TEXT_METRICS)
def test_a_perfect_hypothesis_scores_the_most(name):
  references = [[f'the number {word} stands here'] for word in ('one', 'two', 'three')]
  perfect = value(name, [group[0] for group in references], references)
  assert perfect == pytest.approx(10 if name == 'cider_d' else 1)
  assert value(name, ['the number one stands here'] * 3, references) < perfect


@pytest.mark.parametrize('name', TEXT_METRICS)
def test_empty_hypotheses_score_nothing(name):
  assert value(name, ['', ' . ', ''], [['a dog'], ['.', 'x'], ['']]) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize('name', TEXT_METRICS)
def test_neither_order_of_examples_nor_of_references_matters(name):
  there = value(name, HYPOTHESES, REFERENCES)
  back = value(name, HYPOTHESES[::-1], [group[::-1] for group in REFERENCES[::-1]])
  assert there == pytest.approx(back)


@pytest.mark.parametrize('name', [name for name in TEXT_METRICS if name != 'cider_d'])
def test_an_example_given_twice_is_a_weight_of_two(name):
  metric = METRICS[name]
  tokens = [text.split() for text in HYPOTHESES]
  references = [[text.split() for text in group] for group in REFERENCES]
  weights = np.array([1, 2, 1, 1])
  repeated = value(
    name,
    [HYPOTHESES[0], *HYPOTHESES[1:2] * 2, *HYPOTHESES[2:]],
    [REFERENCES[0], *REFERENCES[1:2] * 2, *REFERENCES[2:]],
  )
  assert metric.value(weights @ metric.statistics(tokens, references)) == pytest.approx(repeated)


def test_exact_match_and_word_f1_by_hand():
  hypotheses = ['Red Heart', 'red red heart', 'sun']
  references = [['red heart', 'heart'], ['red heart'], ['moon']]
  assert value('exact_match', hypotheses, references) == pytest.approx(1 / 3)
  assert value('word_f1', hypotheses, references) == pytest.approx((1 + 4 / 5 + 0) / 3)


def test_values_of_single_examples_come_in_order():
  tokens = [text.split() for text in HYPOTHESES]
  references = [[text.split() for text in group] for group in REFERENCES]
  names = ('exact_match', 'word_f1')
  single = {}
  for name in names:
    single[name] = METRICS[name].value(METRICS[name].statistics(tokens, references))
  assert single['exact_match'].tolist() == [0, 1, 0, 0]
  assert single['word_f1'].shape == (4,) and single['word_f1'].argmax() == 1


def test_an_unknown_metric_is_named_and_the_known_ones_listed():
  with pytest.raises(UserError, match="'blue'.*bleu_4"):
    score_texts(['a'], [['a']], ['blue'])


def test_meteor_without_its_program_is_left_out_with_the_reason(monkeypatch, capsys):
  monkeypatch.setattr(meteor.importlib.util, 'find_spec', lambda name: None)
  scores = score_texts(['a'], [['a']], ['meteor', 'bleu_1'])
  assert list(scores) == ['bleu_1'] and 'pycocoevalcap' in capsys.readouterr().out


def test_meteor_formula_by_hand():
  # 4 words each, none a function word, 2 exact matches each in 2 pieces: P = R = F = 1/2,
  # fragmentation 2/2.
  counts = np.zeros(23)
  counts[:2], counts[4:6], counts[20], counts[21:] = 4, 2, 2, 2
  assert meteor.meteor_value(counts) == pytest.approx(0.5 * (1 - 0.6))
  assert meteor.meteor_value(np.zeros([2, 23])).tolist() == [0, 0]
