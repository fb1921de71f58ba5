"""Is a modality used? The same model on the same examples, with inputs taken away or given to others; read from predictions files.

A condition is a name and a change of the examples: the inputs of another example, none at all, or masked words.
"""

import numpy as np

from mmlm.data.text import MASK
from mmlm.evaluation.metrics import METRICS
from mmlm.evaluation.score_predictions import Predictions, computable
from mmlm.evaluation.significance import paired_bootstrap
from mmlm.utils.choices import one_of

COLOURS = 'black white grey gray brown red orange yellow green blue purple pink tan beige blond blonde golden silver dark light'
PEOPLE = (
  'man men woman women boy boys girl girls person people child children kid kids baby toddler guy guys lady ladies player players '
  'worker workers dancer dancers singer musician musicians rider cyclist biker skier surfer swimmer climber runner runners crowd '
  'group couple family team band audience police officer soldier soldiers student students teacher chef cook artist friends father '
  'mother son daughter brother sister bride groom skateboarder snowboarder gymnast cheerleader cowboy athlete performer'
)
THINGS = (
  'dog dogs cat cats horse horses bird birds cow cows animal animals car cars truck bus train bike bicycle bicycles motorcycle boat '
  'street road sidewalk beach ocean water river lake pool field grass park forest tree trees mountain mountains hill rock rocks snow '
  'sand building buildings house city wall window door table chair bench bed floor stage room kitchen store shop restaurant market '
  'shirt shirts hat hats helmet helmets jacket pants jeans shorts dress suit uniform uniforms shoes coat glasses sunglasses hair '
  'beard ball football soccer baseball basketball tennis hockey guitar drums microphone camera phone book books newspaper bag '
  'umbrella food cake bottle glass cup stick rope fence bridge stairs ladder sign flag slide swing skateboard surfboard wave waves '
  'hand hands face head arms mouth game race concert tool tools cart stroller toy toys background'
)
# Closed lists: what a tagger would add is not needed to see whether the picture fills a gap.
WORDS = {
  'colours': COLOURS.split(),
  'people': PEOPLE.split(),
  'nouns': (PEOPLE + ' ' + THINGS).split(),
}


def mask_words(text: str, kind: str) -> str:
  """`text` with every word of a kind ('nouns', 'colours', 'people') replaced by MASK; punctuation at its ends stays."""
  listed = WORDS[one_of('mask', kind, WORDS)]
  masked = []
  for word in text.split(' '):
    core = word.strip('.,;:!?"\'()').lower()
    masked.append(word.lower().replace(core, MASK) if core in listed else word)
  return ' '.join(masked)


def ablation_table(
  predictions: dict[str, list[dict]], metrics: tuple, samples: int = 1000, language: str = ''
) -> list[dict]:
  """Rows of a table: each condition's scores with intervals, and their difference from the first condition.

  Args:
    predictions: {condition: rows of its predictions file}; the first is the model as it is. Rows are matched by their order.

  Returns:
    [{'condition', 'n', 'changed' (share of hypotheses that differ from the first's), metric: {'value', 'low', 'high',
    'difference', 'p'}}]
  """
  first, *_ = predictions.values()
  base = Predictions(first, language)
  table = []
  metrics = computable(base, metrics)
  for condition, rows in predictions.items():
    views = Predictions(rows, language)
    row = {'condition': condition, 'n': len(rows)}
    row['changed'] = float(
      np.mean([a['hypothesis'] != b['hypothesis'] for a, b in zip(first, rows, strict=True)])
    )
    for name in metrics:
      row[name] = paired_bootstrap(
        views.statistics(name), base.statistics(name), METRICS[name].value, samples
      )
    table.append(row)
  return table


SHARES = tuple(share / 10 for share in range(11))


def missing_curve(
  complete: list[dict], without: list[dict], metric: str, draws: int = 100, seed: int = 0
) -> list[dict]:
  """The score when a share of the examples lack a modality: predictions with it, and for examples drawn by chance those without it.

  What is answered for one example does not depend on others, so that this is what a model says of such a mixed split. Parts of
  one example lack the modality together.

  Returns:
    [{'share', 'value', 'low', 'high'}]: the mean over the draws, and what 95 % of them lie between.
  """
  full, less = (Predictions(rows).statistics(metric) for rows in (complete, without))
  numbers: dict = {}
  group = np.array(
    [numbers.setdefault(str(row.get('input') or row['id']), len(numbers)) for row in complete]
  )
  rng = np.random.default_rng(seed)
  curve = []
  for share in SHARES:
    lacking = np.stack(
      [rng.permutation(len(numbers)) < round(share * len(numbers)) for _ in range(draws)]
    )[:, group]  # [draws, N]
    values = METRICS[metric].value(full.sum(0) + lacking @ (less - full))
    low, high = np.quantile(values, (0.025, 0.975))
    curve.append(
      {'share': share, 'value': float(np.mean(values)), 'low': float(low), 'high': float(high)}
    )
  return curve


def format_table(table: list[dict], metrics: tuple) -> str:
  """The table for a terminal, with those of `metrics` that are in it."""
  metrics = [name for name in metrics if name in table[0]]
  width = max(len(row['condition']) for row in table)
  lines = [f'{"":<{width}}  changed' + ''.join(f'  {name:^28}' for name in metrics)]
  for row in table:
    cells = ''
    for name in metrics:
      s = row[name]
      cells += f'  {s["value"]:7.3f} [{s["low"]:7.3f}, {s["high"]:7.3f}]' + (
        f' p {s["p"]:.3f}' if row is not table[0] else ' ' * 8
      )
    lines.append(f'{row["condition"]:<{width}}  {100 * row["changed"]:5.1f} %{cells}')
  return '\n'.join(lines)
