"""Ablation studies: the same model on the same examples with inputs removed, shuffled or masked.

They are computed from predictions files, one a condition. Axes: N examples, D draws.
"""

import numpy as np
from numpy.typing import NDArray

from mmlm.data.text import MASK
from mmlm.evaluation.metrics import METRICS
from mmlm.evaluation.metrics.metric import Rows
from mmlm.evaluation.score_predictions import Predictions, computable
from mmlm.evaluation.significance import paired_bootstrap
from mmlm.utils.choices import one_of

COLOURS = (
  'black white grey gray brown red orange yellow green blue purple pink tan beige blond blonde '
  'golden silver dark light'
)
PEOPLE = (
  'man men woman women boy boys girl girls person people child children kid kids baby toddler '
  'guy guys lady ladies player players worker workers dancer dancers singer musician musicians '
  'rider cyclist biker skier surfer swimmer climber runner runners crowd group couple family '
  'team band audience police officer soldier soldiers student students teacher chef cook artist '
  'friends father mother son daughter brother sister bride groom skateboarder snowboarder '
  'gymnast cheerleader cowboy athlete performer'
)
THINGS = (
  'dog dogs cat cats horse horses bird birds cow cows animal animals car cars truck bus train '
  'bike bicycle bicycles motorcycle boat street road sidewalk beach ocean water river lake pool '
  'field grass park forest tree trees mountain mountains hill rock rocks snow sand building '
  'buildings house city wall window door table chair bench bed floor stage room kitchen store '
  'shop restaurant market shirt shirts hat hats helmet helmets jacket pants jeans shorts dress '
  'suit uniform uniforms shoes coat glasses sunglasses hair beard ball football soccer baseball '
  'basketball tennis hockey guitar drums microphone camera phone book books newspaper bag '
  'umbrella food cake bottle glass cup stick rope fence bridge stairs ladder sign flag slide '
  'swing skateboard surfboard wave waves hand hands face head arms mouth game race concert tool '
  'tools cart stroller toy toys background'
)
# Closed lists: a tagger is not needed to see whether the picture supplies a masked word.
WORDS = {
  'colours': COLOURS.split(),
  'people': PEOPLE.split(),
  'nouns': f'{PEOPLE} {THINGS}'.split(),
}
SHARES = tuple(share / 10 for share in range(11))
_PUNCTUATION = '.,;:!?"\'()'


def mask_words(text: str, kind: str) -> str:
  """Returns `text` with every word of a kind replaced by MASK; punctuation at its ends stays.

  Args:
    kind: 'nouns', 'colours' or 'people'.
  """
  words = WORDS[one_of('mask', kind, WORDS)]
  masked = []
  for word in text.split(' '):
    core = word.strip(_PUNCTUATION).lower()
    if core in words:
      word = word.lower().replace(core, MASK)
    masked.append(word)
  return ' '.join(masked)


def ablation_table(
  predictions: dict[str, Rows],
  metrics: tuple[str, ...],
  samples: int = 1000,
  language: str = '',
) -> Rows:
  """Returns the scores of each condition and their differences from the first condition.

  Args:
    predictions: {condition: rows of its predictions file, in the same order}; the first is the
      unchanged model.

  Returns:
    [{'condition', 'n', 'changed' (share of hypotheses that differ from the first's), metric:
    {'value', 'low', 'high', 'difference', 'p'}}]
  """
  unchanged, *_ = predictions.values()
  base = Predictions(unchanged, language)
  names = computable(base, metrics)
  table = []
  for condition, rows in predictions.items():
    of_condition = Predictions(rows, language)
    line: dict = {'condition': condition, 'n': len(rows)}
    line['changed'] = _share_changed(unchanged, rows)
    for name in names:
      line[name] = paired_bootstrap(
        of_condition.statistics(name), base.statistics(name), METRICS[name].value, samples
      )
    table.append(line)
  return table


def _share_changed(unchanged: Rows, rows: Rows) -> float:
  changed = []
  for first, second in zip(unchanged, rows, strict=True):
    changed.append(first['hypothesis'] != second['hypothesis'])
  return float(np.mean(changed))


def missing_curve(
  complete: Rows,
  without: Rows,
  metric: str,
  draws: int = 100,
  seed: int = 0,
) -> Rows:
  """Returns scores over the share of examples that lack a modality.

  The prediction for one example does not depend on others, so this is what the model scores on such
  a mixed split. Parts of one example lack the modality together.

  Args:
    complete: predictions with the modality.
    without: predictions without it, which examples drawn by chance get.

  Returns:
    [{'share', 'value', 'low', 'high'}]: the mean over the draws, and the interval that holds 95 %
    of them.
  """
  with_modality = Predictions(complete).statistics(metric)
  without_modality = Predictions(without).statistics(metric)
  difference = without_modality - with_modality
  example, count = _examples_of(complete)
  rng = np.random.default_rng(seed)
  curve = []
  for share in SHARES:
    draws_of_share = [rng.permutation(count) < round(share * count) for _ in range(draws)]
    lacking = np.stack(draws_of_share)[:, example]  # [D, N]
    values = METRICS[metric].value(with_modality.sum(0) + lacking @ difference)
    low, high = np.quantile(values, (0.025, 0.975))
    curve.append(
      {'share': share, 'value': float(np.mean(values)), 'low': float(low), 'high': float(high)}
    )
  return curve


def _examples_of(predictions: Rows) -> tuple[NDArray, int]:
  """Returns the number of the example that each row is a part of, [N], and how many there are."""
  numbers: dict[str, int] = {}
  examples = []
  for row in predictions:
    name = str(row.get('input') or row['id'])
    examples.append(numbers.setdefault(name, len(numbers)))
  return np.array(examples), len(numbers)


def format_table(table: Rows, metrics: tuple[str, ...]) -> str:
  """Formats a table for a terminal, with those of `metrics` that are in it."""
  names = [name for name in metrics if name in table[0]]
  width = max(len(line['condition']) for line in table)
  header = ''.join(f'  {name:^28}' for name in names)
  formatted = [f'{"":<{width}}  changed{header}']
  for line in table:
    cells = ''
    for name in names:
      cells += _cell(line[name], is_base=line is table[0])
    formatted.append(f'{line["condition"]:<{width}}  {100 * line["changed"]:5.1f} %{cells}')
  return '\n'.join(formatted)


def _cell(score: dict, is_base: bool) -> str:
  p = ' ' * 8 if is_base else f' p {score["p"]:.3f}'
  return f'  {score["value"]:7.3f} [{score["low"]:7.3f}, {score["high"]:7.3f}]{p}'
