"""Commands that read predictions: compare two runs, and take inputs away from one (`ablate`); `translate` talks to a person."""

import pathlib
import sys

from mmlm.data.sources.parallel_text import decode_line
from mmlm.evaluation.ablation import WORDS, ablation_table, format_table, mask_words, missing_curve
from mmlm.evaluation.metrics import METRICS
from mmlm.evaluation.metrics import views as metric_views
from mmlm.evaluation.score_predictions import Predictions, computable
from mmlm.evaluation.significance import paired_bootstrap
from mmlm.experiment.experiment import Experiment
from mmlm.experiment.prediction import Condition, Predictor, decode, file_name, params_of
from mmlm.utils import run_dir as runs
from mmlm.utils.errors import UserError


def compare(first: str, second: str, split: str, settings: dict) -> dict:
  """Paired bootstrap between the predictions of two runs, or of two predictions files; prints and returns {metric: result}."""
  paths = [_predictions_of(place, split) for place in (first, second)]
  sides = [by_id(path) for path in paths]
  ids = [name for name in sides[0] if name in sides[1]]
  if len(ids) < max(map(len, sides)):
    missing = next(
      name for side, other in (sides, sides[::-1]) for name in side if name not in other
    )
    raise UserError(
      f'{paths[0]} and {paths[1]} hold different examples, {missing!r} for one: only the same split can be compared.'
    )
  if different := [
    name for name in ids if sides[0][name]['references'] != sides[1][name]['references']
  ]:
    raise UserError(f'{paths[0]} and {paths[1]}: the references of {different[0]!r} differ.')
  folder = paths[0].parent.parent
  if (folder / 'config.json').exists():
    experiment = Experiment.of_run(folder, settings)
    options = experiment.config.evaluate
    language = experiment.config.data.languages.target
    metrics = options.metrics or experiment.task.metrics
    samples = options.bootstrap_samples
  elif settings:
    raise UserError(
      f'{paths[0]} is of no run folder: there is no config to set {", ".join(settings)} in.'
    )
  else:
    metrics = ('bleu', 'chrf', 'ter')
    samples = 1000
    language = ''
  views = [Predictions([side[name] for name in ids], language) for side in sides]
  print(f'{len(ids)} examples\n  a  {paths[0]}\n  b  {paths[1]}')
  results = {}
  for name in computable(views[0], metrics):
    found = results[name] = paired_bootstrap(
      *(view.statistics(name) for view in views), METRICS[name].value, samples
    )
    low, high = found['difference_interval']
    print(
      f'{name:<12} a {found["value"]:.4f}  b {found["value"] - found["difference"]:.4f}  a - b {found["difference"]:+.4f} [{low:+.4f}, {high:+.4f}]  p {found["p"]:.3f}'
    )
  return results


def by_id(path) -> dict:
  """{id: row} of a predictions file."""
  try:
    rows = runs.read_jsonl(path)
    found = {}
    for row in rows:
      if row['references'] and isinstance(row['hypothesis'], str):
        found[row['id']] = row
  except OSError as error:
    raise UserError(f'{path}: {error.strerror}.') from None
  except (ValueError, KeyError, TypeError) as error:
    raise UserError(
      f'{path}: no predictions file, whose lines have id, references and hypothesis ({error!r}).'
    ) from None
  if not rows or len(found) < len(rows):
    raise UserError(
      f'{path}: {len(rows)} lines, {len(found)} of them with an id of their own and references.'
    )
  return found


def _predictions_of(place: str, split: str) -> pathlib.Path:
  """A predictions file itself, or that of a run folder: its newest step, decoded as configured if it was."""
  path = pathlib.Path(place)
  if path.is_file():
    return path
  if not path.is_dir():
    raise UserError(f'{place}: no such run folder or predictions file.')
  found = []
  for match, p in runs.predictions(path):
    if match['split'] == (file_name(split) if split else match['split']):
      found.append((p, match))
  if not found:
    raise UserError(
      f'{place}: no predictions{f" of {split!r}" if split else ""}. `./launch.sh evaluate {place}` writes them.'
    )
  if len(names := sorted({match['split'] for _, match in found})) > 1:
    raise UserError(f'{place} holds predictions of {", ".join(names)}: choose one by --split.')
  return max(
    found,
    key=lambda item: (int(item[1]['step']), item[1]['method'] is None),
  )[0]


def ablate(workdir: str, splits: tuple, settings: dict) -> list[dict]:
  """Scores a run with its inputs as they are, each modality given to the wrong examples, each left out, and source words masked."""
  experiment = Experiment.of_run(workdir, settings)
  if not experiment.modalities:
    raise UserError(
      f'{workdir} holds a language model, which reads no input that could be taken away.'
    )
  config = experiment.config
  evaluator = experiment.evaluator()
  metrics = config.evaluate.metrics or experiment.task.metrics
  tables = []
  params = None
  for split in splits or experiment.splits('test'):
    if params is None:
      params, step = params_of(
        experiment,
        experiment.loader(split, experiment.table(split, False), config.evaluate.batch_size),
      )
    predictions = {}
    files = {}
    for condition in conditions_of(experiment, split):
      name = f'{file_name(split)}-{step}' + (
        f'-{condition}'.replace(', ', '-').replace(' ', '_') if any(condition) else ''
      )
      predictions[str(condition)] = rows = decode(
        experiment, evaluator, params, split, condition=condition, progress=name
      )
      files[str(condition)] = f'{name}.jsonl'
      runs.write_jsonl(experiment.folder / 'predictions' / files[str(condition)], rows)
    # A mask may take more tokens than its word, so that a text no longer fits.
    common = set.intersection(*({row['id'] for row in rows} for rows in predictions.values()))
    predictions = {
      condition: [row for row in rows if row['id'] in common]
      for condition, rows in predictions.items()
    }
    table = ablation_table(
      predictions, metrics, config.evaluate.bootstrap_samples, config.data.languages.target
    )
    for row in table:
      row['predictions'] = files[row['condition']]
    print(f'\n{split}, step {step}\n{format_table(table, metrics)}')
    curves = missing_curves(experiment, predictions)
    runs.write_json(
      experiment.folder / 'ablation' / f'{file_name(split)}.json',
      {'split': split, 'step': step, 'rows': table, 'missing': curves},
    )
    tables.append(table)
  return tables


def missing_curves(experiment: Experiment, predictions: dict) -> dict:
  """{modality: {metric: curve}} of the modalities that were taken away from a model which has others; prints the first metric."""
  curves = {}
  for modality in experiment.modalities if len(experiment.modalities) > 1 else ():
    if (rows := predictions.get(str(Condition(without=modality)))) is None:
      continue
    complete = predictions[str(Condition())]
    metrics = [
      name
      for name in experiment.config.evaluate.metrics or experiment.task.metrics
      if METRICS[name].view in (metric_views.labels, metric_views.values)
    ]
    curves[modality] = {metric: missing_curve(complete, rows, metric) for metric in metrics}
    for metric in metrics[:1]:
      said = '  '.join(
        f'{100 * point["share"]:.0f} % {point["value"]:.3f}'
        for point in curves[modality][metric][::2]
      )
      print(f'{metric} where so many examples lack {modality}: {said}')
  return curves


def conditions_of(experiment: Experiment, split: str) -> list[Condition]:
  """What can be taken away from this model; as it is comes first. Lists of words to mask are English; one without a word in the
  split is left out."""
  others = [modality for modality in experiment.modalities if modality != 'text']
  # A text to be translated is not taken away; beside others one that is judged is.
  if experiment.task.answers == 'label' and others:
    away = experiment.modalities
  else:
    away = others
  conditions = [
    Condition(),
    *(Condition(shuffled=m) for m in experiment.modalities),
    *(Condition(without=m) for m in away),
  ]
  words = (
    'text' in experiment.modalities and 'text' not in experiment.widths
  )  # no features of a text
  if words and experiment.config.data.languages.text in ('', 'en'):
    source = experiment.source(split)
    texts = [source[i].get('text', '') for i in range(len(source))]
    kinds = [kind for kind in WORDS if any(mask_words(text, kind) != text for text in texts)]
    conditions += [Condition(masked=kind, shuffled=m) for kind in kinds for m in ('', *others)]
  return conditions


def translate(workdir: str, image: str, n_best: int, scores: bool, settings: dict) -> None:
  """Translates the lines of standard input, in order, an empty one into an empty one; on a terminal it answers line by line."""
  experiment = Experiment.of_run(workdir, {'decoding.n_best': str(n_best)} | settings)
  if 'text' not in experiment.modalities:
    raise UserError(
      f'{workdir} reads {", ".join(experiment.modalities)} and no text: use `./launch.sh predict`.'
    )
  picture = _picture(image, experiment.modalities)
  predictor = Predictor(experiment)

  def answer(examples):
    given = [example for example in examples if example['text']]
    rows = iter(predictor(given, 'translate') if given else [])
    for example in examples:
      _show(
        next(rows)
        if example['text']
        else {'n_best': [('', 0.0)] * experiment.config.decoding.n_best},
        scores,
      )

  if sys.stdin.isatty():
    print('One sentence a line; Ctrl-D ends.')
    lines = iter(lambda: input('> '), None)
    try:
      for number, line in enumerate(lines, 1):
        try:
          answer([_line(number, line, picture)])
        except UserError as error:
          print(f'mmlm: {error}', file=sys.stderr)
    except EOFError:
      print()
    return
  waiting = []
  for number, line in enumerate(sys.stdin.buffer, 1):
    waiting.append(
      _line(number, decode_line(line.rstrip(b'\n'), 'standard input', number), picture)
    )
    if len(waiting) == experiment.config.evaluate.batch_size:
      answer(waiting)
      waiting = []
  answer(waiting)


def _picture(path: str, modalities: tuple) -> dict:
  """{'image': the bytes of the file} where the model reads pictures."""
  wanted = [modality for modality in modalities if modality != 'text']
  if not path and not wanted:
    return {}
  if wanted != ['image']:
    raise UserError(f'--image {path}: this model reads {", ".join(modalities)}.')
  if not path:
    raise UserError(
      'this model reads a picture beside the text: give it by --image, or a manifest to `./launch.sh predict`.'
    )
  try:
    data = pathlib.Path(path).read_bytes()
  except OSError as error:
    raise UserError(f'--image {path}: {error.strerror}.') from None
  if not data:  # elsewhere this means that an example has none
    raise UserError(f'--image {path}: the file has zero bytes.')
  return {'image': data}


def _line(number: int, text: str, picture: dict) -> dict:
  return {'id': f'standard input, line {number}', 'text': text.strip(), **picture}


def _show(row: dict, scores: bool):
  for text, value in row.get('n_best') or [(row['hypothesis'], row['score'])]:
    text = ' '.join(text.splitlines())  # one line each, whatever was learned
    print(f'{value:.4f}\t{text}' if scores else text, flush=True)
