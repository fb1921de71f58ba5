"""One self-contained page of a run; report.html.jinja is the page, here its content is gathered."""

import base64
import functools
import io
import math
import pathlib
import random

import jinja2
from flax.traverse_util import flatten_dict
from PIL import Image

from mmlm.errors import UserError
from mmlm.evaluation.caption_metrics import CAPTION_METRICS, tokenize_caption
from mmlm.evaluation.label_metrics import confusion_table
from mmlm.evaluation.text_metrics import METRICS
from mmlm.reports import speech
from mmlm.runs import PREDICTIONS, read_json, read_jsonl, write_atomic

SAMPLE = 24  # predictions shown
_POINTS = 300  # of a curve, at most
_WIDTH, _HEIGHT = 266, 136  # of the plotted area, in units of the SVG


def _number(value, plain=False) -> str:
  if not isinstance(value, float):
    return str(value)
  return f'{value:.3g}' if plain and abs(value) < 100 else f'{value:,.{3 if abs(value) < 100 else 1}f}'


def _scores(folder) -> list:
  """Score files by split, newest step first; shuffled pictures stand right of the same with its own."""
  scores = map(read_json, (folder / 'scores').glob('*.json'))
  return sorted(scores, key=lambda s: (s['split'], -s['step'], s['decoding'].get('method', ''), s['shuffled']))


def _series(rows) -> dict:
  """{metric: {line: [(step, value), ...]}}: a line is 'train', 'valid' or one of several splits."""
  series = {name: {} for name in ('loss', 'perplexity', *METRICS)}
  for row in rows:
    for key, value in row.items():
      split, _, name = key.rpartition('/')
      if name in (('loss',) if row['kind'] == 'train' else series) and math.isfinite(value):
        series[name].setdefault(split or row['kind'], []).append((row['step'], value))
  return {name: lines for name, lines in series.items() if lines}


def _thin(points) -> list:
  """At most _POINTS points, each the mean of a stretch, so that a peak of noise does not hide the trend."""
  size = math.ceil(len(points) / _POINTS)
  groups = [points[i:i + size] for i in range(0, len(points), size)]  # fmt: skip
  return [tuple(sum(column) / len(group) for column in zip(*group)) for group in groups]


def _plot(name: str, lines: dict, labels: list, first: int, last: int) -> dict:
  """Places of one metric in the plotted area: of its lines [(label, colour, [(x, y), ...])], of its ticks."""
  lines = {label: _thin(sorted(points)) for label, points in lines.items()}
  values = [value for points in lines.values() for _, value in points]
  low, high = min(values), max(values)
  x = lambda step: round((step - first) / (last - first or 1) * _WIDTH, 1)
  y = lambda value: round((high - value) / (high - low or 1) * _HEIGHT, 1)
  return {
    'name': name,
    'lines': [(label, labels.index(label) % 3, [(x(step), y(value)) for step, value in points])
              for label, points in lines.items()],
    'rows': [(y(value), float(value)) for value in dict.fromkeys((low, (low + high) / 2, high))],
    'columns': [(x(step), step) for step in dict.fromkeys((first, last))],
  }  # fmt: skip


def _plots(folder) -> list:
  """One plot a metric, over the same steps and with the same colour for the same line."""
  path = folder / 'metrics.jsonl'
  series = _series(read_jsonl(path) if path.exists() else [])
  steps = [step for lines in series.values() for points in lines.values() for step, _ in points]
  labels = list(dict.fromkeys(label for lines in series.values() for label in lines))
  return [_plot(name, lines, labels, min(steps), max(steps)) for name, lines in series.items()]


def _picture(data: bytes | None) -> dict | None:
  try:
    with Image.open(io.BytesIO(data or b'')) as image:
      source = f'data:{image.get_format_mimetype()};base64,{base64.b64encode(data).decode()}'
      return {'source': source, 'small': max(image.size) < 64}
  except OSError:
    return None


def _newest_predictions(folder) -> dict:
  """{file name: rows} of each split's newest step, pictures not shuffled, decoded as configured if it was."""
  newest = {}
  for path in sorted((folder / 'predictions').glob('*.jsonl')):
    if match := PREDICTIONS.fullmatch(path.stem):
      order = int(match['step']), match['method'] is None
      newest[match['split']] = max(newest.get(match['split'], (order, path)), (order, path))
  return {path.stem: rows for _, (_, path) in sorted(newest.items()) if (rows := read_jsonl(path))}


def _graded(rows, task: str) -> list:
  """The rows, best first, with `exact`, `grade` (more is better) and `told`, what the page says of it; a row's own score is only the model's
  confidence.
  """
  return sorted(GRADES.get(task, _texts)(rows), key=lambda row: (-row['grade'], -row['exact']))


def _classes(rows) -> list:
  graded = []
  for row in rows:
    (reference,) = row['references']
    grade = row['probabilities'].get(reference, 0.0)
    told = f'right class {grade:.2f}, own answer {row["score"]:.2f}'
    graded.append(row | {'exact': row['hypothesis'] == reference, 'grade': grade, 'told': told})
  return graded


def _numbers(rows) -> list:
  off = lambda row: abs(row['score'] - float(row['references'][0]))
  return [row | {'exact': False, 'grade': -off(row), 'told': f'off by {off(row):.2f}'} for row in rows]


def _texts(rows) -> list:
  hypotheses = [tokenize_caption(row['hypothesis']) for row in rows]
  references = [[tokenize_caption(text) for text in row['references']] for row in rows]
  single = lambda name: CAPTION_METRICS[name].value(CAPTION_METRICS[name].statistics(hypotheses, references)).tolist()
  told = lambda row, f1: f'word F1 {f1:.2f} · score\N{NO-BREAK SPACE}{_number(row["score"])}'
  return [row | {'exact': e, 'grade': f, 'told': told(row, f)} for row, e, f in zip(rows, single('exact_match'), single('word_f1'))]


def _language(rows) -> list:
  """Stretches of a text stand where others have an answer; a text whose masked words were found has one."""
  graded = []
  for row in rows:
    nats = row['nats'] / max(row['tokens'], 1)
    shown = {} if row['hypothesis'] else {'hypothesis': row['references'][0], 'references': []}
    graded.append(row | shown | {'exact': False, 'grade': -nats, 'told': f'{nats:.3f} nats a token'})
  return graded


GRADES = {
  'language_model': _language, 'masked_language_model': _language, 'classification': _classes, 'regression': _numbers, 'recognition': speech.graded,
}  # fmt: skip


def _confusions(files: dict) -> list:
  """[(file name, classes, [(class, counts)])] of predicted classes."""
  tables = [(name, *confusion_table(rows)) for name, rows in files.items() if 'probabilities' in rows[0]]
  return [(name, classes, list(zip(classes, table.tolist()))) for name, classes, table in tables]


def _missing(folder, against) -> list:
  """Plots of the first metric over the share of examples that lack a modality, one a modality; `against` another run's line beside."""
  sides = {'this run': folder} | ({str(against): pathlib.Path(against)} if against else {})
  curves: dict = {}
  for label, place in sides.items():
    for path in sorted((place / 'ablation').glob('*.json')):
      ablation = read_json(path)
      for modality, of_metric in ablation.get('missing', {}).items():
        for metric, points in list(of_metric.items())[:1]:
          lines = curves.setdefault((ablation['split'], modality, metric), {})
          lines[label] = [(100 * point['share'], point['value']) for point in points]
  return [_plot(f'{metric}, {split}: without {modality}', lines, list(sides), 0, 100) for (split, modality, metric), lines in curves.items()]


def _sample(rows, count: int, task: str) -> dict:
  """A third each: best, worst, and at random of the rest; always the same for the same rows."""
  third, rows = min(count, len(rows)) // 3, _graded(rows, task)
  middle = rows[third:len(rows) - third]  # fmt: skip
  chance = random.Random(0).sample(middle, min(len(middle), count - 2 * third))
  return {'Best': rows[:third], 'Worst': rows[::-1][:third], 'At random': chance}


def write_report(run_folder, examples=lambda identity: None, against=None) -> pathlib.Path:
  """Writes <run_folder>/report.html and returns its path; what the run has not made yet is named.

  examples: a prediction's id -> the raw example, whose picture and sound are shown, or None. against: another run, whose scores with missing inputs are drawn beside.
  Raises UserError where there is no such folder.
  """
  folder = pathlib.Path(run_folder)
  for place in (folder, *([pathlib.Path(against)] if against else [])):
    if not place.is_dir():
      raise UserError(f'{place}: no such run folder; `train` makes one.')
  if against and not [*(pathlib.Path(against) / 'ablation').glob('*.json')]:
    raise UserError(f'{against}: nothing was taken away from its inputs yet; `./launch.sh ablate {against}` does it.')
  paths = folder / 'config.json', folder / 'environment.json'
  config, environment = (read_json(path) if path.exists() else {} for path in paths)
  scores, files = _scores(folder), _newest_predictions(folder)
  jinja = jinja2.Environment(loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent), autoescape=True,
                             undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
  flatten = functools.partial(flatten_dict, sep='.')  # {'model': {'width': 8}} -> {'model.width': 8}
  jinja.filters |= {'number': _number, 'flatten': flatten, 'picture': lambda i: _picture((examples(i) or {}).get('image')),
                    'sound': lambda row: speech.sound_of(examples(row['id']), row), 'difference': speech.difference}  # fmt: skip
  task, reads = config.get('task'), config.get('model', {}).get('encoders', ['image'])
  write_atomic(folder / 'report.html', jinja.get_template('report.html.jinja').render(
    reads_pictures='image' in reads, reads_sounds='audio' in reads, spoken=task in speech.TASKS, counts=speech.counts(scores),
    title=config.get('name') or folder.resolve().name, config=config, environment=environment, scores=scores,
    metrics=dict.fromkeys(name for score in scores for name in score['scores']),
    plots=_plots(folder), missing_inputs=_missing(folder, against), confusions=_confusions(files), width=_WIDTH, height=_HEIGHT,
    samples={name: _sample(rows, max(3, SAMPLE // len(files)), task) for name, rows in files.items()},
  ))  # fmt: skip
  return folder / 'report.html'
