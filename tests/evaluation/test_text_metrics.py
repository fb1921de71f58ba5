"""Scores of translations: those of sacrebleu, on the texts that each metric wants to see."""

import numpy as np
import pytest
import sacrebleu
from sacrebleu.significance import PairedTest

from mmlm.config import default_config
from mmlm.data.text import MASK
from mmlm.evaluation.ablation import ablation_table, format_table, mask_words
from mmlm.evaluation.metrics import METRICS, higher_is_better, meteor
from mmlm.evaluation.score_predictions import Predictions, check_reference_words, score_predictions
from mmlm.evaluation.significance import paired_bootstrap
from mmlm.utils.errors import UserError

SACREBLEU = {'bleu': sacrebleu.BLEU(), 'chrf': sacrebleu.CHRF(), 'ter': sacrebleu.TER()}
TEXT = (
  'Ein Mann, eine Frau und zwei Hunde laufen schnell '
  'über die grüne Wiese neben dem alten "Haus" am See .'
)
WORDS = TEXT.split()


def corpus(seed=0, count=60, noise=0.2, most=1):
  """Returns predictions: up to `most` references each, hypotheses with words replaced."""
  rng = np.random.default_rng(0)
  references = []
  for i in range(count):
    references.append(
      [' '.join(rng.choice(WORDS, rng.integers(5, 12))) for _ in range(i % most + 1)]
    )
  rng = np.random.default_rng(seed + 1)

  def changed(text):
    return ' '.join(rng.choice(WORDS) if rng.random() < noise else word for word in text.split())

  result = []
  for i, group in enumerate(references):
    result.append({'id': str(i), 'hypothesis': changed(group[0]), 'references': group})
  return result


@pytest.mark.parametrize('most', [1, 3])
@pytest.mark.parametrize('name', SACREBLEU)
def test_scores_are_those_of_sacrebleu(name, most):
  rows = corpus(most=most)
  columns = []
  for i in range(most):
    columns.append([row['references'][i] if i < len(row['references']) else None for row in rows])
  expected = SACREBLEU[name].corpus_score([row['hypothesis'] for row in rows], columns).score
  found = score_predictions(Predictions(rows), [name], 200)[name]
  assert found['value'] == pytest.approx(expected) and 10 < expected < 95
  assert found['low'] < found['value'] < found['high'] and found['high'] - found['low'] < 20
  twice = np.array([2.0, *[1] * (len(rows) - 1)])  # an example given twice is a weight of two
  sums = twice @ Predictions(rows).statistics(name)
  assert METRICS[name].value(np.stack([sums, sums])) == pytest.approx(
    score_predictions(Predictions([rows[0], *rows]), [name], 1)[name]['value']
  )


@pytest.mark.parametrize(
  'name, best', [('bleu', 100), ('bleu_words', 100), ('chrf', 100), ('ter', 0)]
)
def test_a_perfect_hypothesis_scores_the_best(name, best):
  rows = corpus(noise=0)
  assert [*score_predictions(Predictions(rows, 'de'), [name], 5)[name].values()] == pytest.approx(
    [best] * 3
  )
  worse = score_predictions(Predictions(corpus(noise=0.1), 'de'), [name], 5)[name]['value']
  assert worse < best if higher_is_better(name) else worse > best


def test_published_bleu_reads_the_words_that_the_model_wrote():
  """Tokenizes the text that a person reads only where a file lacks these words."""
  row = {
    'id': 'a',
    'hypothesis': 'x',
    'words': 'Ein Mann , der läuft .',
    'references': ['Ein Mann, der läuft.'],
  }

  def value(**changes):
    return score_predictions(Predictions([row | changes], 'de'), ['bleu_words'], 1)['bleu_words'][
      'value'
    ]

  assert value() == pytest.approx(100) == value(words='ein MANN , der läuft .')
  assert value(words='Ein Mann, der läuft.') < 1
  without = {key: text for key, text in row.items() if key != 'words'} | {
    'hypothesis': 'Ein Mann, der läuft.'
  }
  assert score_predictions(Predictions([without], 'de'), ['bleu_words'], 1)['bleu_words'][
    'value'
  ] == pytest.approx(100)


def test_references_of_another_length_fail_the_evaluation():
  config = default_config()
  config.data.languages.target = 'de'
  references = [['Ein Mann, der läuft.']]
  for split, wanted in (('test', 6), ('other', 5)):
    config.evaluate.reference_words = {split: wanted}
    check_reference_words(references, 'test', config)
  config.evaluate.reference_words = {'test': 5}
  with pytest.raises(
    UserError, match=r'test: the references have 6 words.*not the 5 of evaluate\.reference_words'
  ):
    check_reference_words(references, 'test', config)


# Comparison


def compared(first, second, name='bleu', **options):
  return paired_bootstrap(
    Predictions(first).statistics(name),
    Predictions(second).statistics(name),
    METRICS[name].value,
    **options,
  )


def test_a_system_does_not_differ_from_itself_and_a_better_one_does():
  rows = corpus()
  same = compared(rows, rows)
  assert same['p'] == 1 and same['difference'] == 0 and same['low'] < same['value'] < same['high']
  better = compared(corpus(noise=0.05), corpus(noise=0.3))
  assert (
    better['p'] < 0.01
    and 0
    < better['difference_interval'][0]
    < better['difference']
    < better['difference_interval'][1]
  )
  worse = compared(corpus(noise=0.3), corpus(noise=0.05))
  assert worse['p'] == better['p'] and worse['difference'] == -better['difference']


def test_one_seed_gives_one_comparison():
  pair = corpus(), corpus(1)
  assert compared(*pair) == compared(*pair) != compared(*pair, seed=1)
  with pytest.raises(ValueError, match='60 examples against 59'):
    compared(corpus(), corpus(1)[1:])


def test_examples_are_drawn_together():
  """A small gain on every example is significant, although the examples differ much.

  Unpaired it would not be.
  """
  scores = np.random.default_rng(0).uniform(size=100)

  def column(values):
    return np.stack([values, np.ones(100)], 1)

  found = paired_bootstrap(
    column(scores + 0.01 + 0.001 * scores), column(scores), lambda sums: sums[..., 0] / sums[..., 1]
  )
  assert found['p'] < 0.01 and found['high'] - found['low'] > 0.05


@pytest.mark.parametrize('noise', [0.2, 0.25, 0.3])
def test_p_is_near_that_of_sacrebleu(noise):
  """Compares with both of its tests.

  Randomisation is two-sided, the bootstrap counts one tail of absolute differences.
  """
  first = corpus(3, noise=noise)
  second = corpus(4, noise=0.2)
  systems = []
  for name, rows in (('base', second), ('ours', first)):
    systems.append((name, [row['hypothesis'] for row in rows]))
  references = [[row['references'][0] for row in first]]

  def test(kind):
    return PairedTest(
      systems, {'BLEU': sacrebleu.BLEU()}, references, test_type=kind, n_samples=2000
    )()[1]['BLEU'][1]

  ours = compared(first, second, samples=2000)
  randomised = test('ar')
  resampled = test('bs')
  assert ours['value'] == pytest.approx(randomised.score)
  assert ours['p'] == pytest.approx(randomised.p_value, abs=0.06)
  if ours['p'] < 0.1:
    assert ours['p'] / 2 == pytest.approx(resampled.p_value, abs=0.02)


# Ablation


@pytest.mark.parametrize(
  'kind, text, masked',
  [
    (
      'colours',
      'A man in a Red shirt, (blue) and white.',
      f'A man in a {MASK} shirt, ({MASK}) and {MASK}.',
    ),
    ('people', 'Two women and the manager: "Men!"', f'Two {MASK} and the manager: "{MASK}!"'),
    ('nouns', 'A  woman walks her dog', f'A  {MASK} walks her {MASK}'),
    ('nouns', 'Nothing here .', 'Nothing here .'),
  ],
)
def test_words_of_a_kind_are_masked_and_nothing_else(kind, text, masked):
  assert mask_words(text, kind) == masked


def test_an_unknown_kind_of_words_is_refused():
  with pytest.raises(UserError, match="colors.*'colours'"):
    mask_words('a', 'colors')


def test_an_ablation_compares_each_condition_with_the_first(monkeypatch, capsys):
  monkeypatch.setattr(meteor.importlib.util, 'find_spec', lambda name: None)
  names = ('bleu', 'meteor', 'ter')
  predictions = {
    'as it is': corpus(noise=0.05),
    'without image': corpus(noise=0.4),
    'the same': corpus(noise=0.05),
  }
  table = ablation_table(predictions, names, 200)
  assert [row['condition'] for row in table] == list(predictions) and {
    row['n'] for row in table
  } == {60}
  whole, without, same = table
  assert whole['changed'] == same['changed'] == 0 and 0.8 < without['changed'] <= 1
  assert same == whole | {'condition': 'the same'} and same['bleu']['p'] == 1
  assert (
    without['bleu']['difference'] < -10
    and without['ter']['difference'] > 10
    and without['bleu']['p'] < 0.02
  )
  expected = score_predictions(Predictions(predictions['without image']), ['bleu'], 200)['bleu']
  assert {key: without['bleu'][key] for key in expected} == pytest.approx(expected, rel=0.03)
  assert 'meteor' not in whole and 'METEOR is left out' in capsys.readouterr().out
  lines = format_table(table, names).splitlines()
  assert (
    len(lines) == 4 and 'meteor' not in lines[0] and f'{without["bleu"]["value"]:.3f}' in lines[2]
  )
  with pytest.raises(ValueError):
    ablation_table({'as it is': corpus(), 'shorter': corpus()[1:]}, ('bleu',), 5)
