"""Commands that read predictions: compare two runs, and take inputs away from one (`ablate`); `translate` talks to a person."""

import pathlib
import sys

from mmlm import runs
from mmlm.commands import inputs_of
from mmlm.data.parallel_text import decode_line
from mmlm.errors import UserError
from mmlm.evaluation.ablation import WORDS, ablation_table, format_table
from mmlm.evaluation.significance import paired_bootstrap
from mmlm.evaluation.text_metrics import METRICS, Views
from mmlm.experiment import Experiment
from mmlm.inference import Condition, Predictor, decode, file_name, params_of


def compare(first: str, second: str, split: str, settings: dict) -> dict:
  """Paired bootstrap between the predictions of two runs, or of two predictions files; prints and returns {metric: result}."""
  paths = [_predictions_of(place, split) for place in (first, second)]
  sides = [{row['id']: row for row in runs.read_jsonl(path)} for path in paths]
  ids = [name for name in sides[0] if name in sides[1]]
  if len(ids) < max(map(len, sides)):
    missing = next(name for side, other in (sides, sides[::-1]) for name in side if name not in other)
    raise UserError(f'{paths[0]} and {paths[1]} hold different examples, {missing!r} for one: only the same split can be compared.')
  if different := [name for name in ids if sides[0][name]['references'] != sides[1][name]['references']]:
    raise UserError(f'{paths[0]} and {paths[1]}: the references of {different[0]!r} differ.')
  folder = paths[0].parent.parent
  experiment = Experiment.of_run(folder, settings) if (folder / 'config.json').exists() else None
  language = experiment.config.data.languages.target if experiment else ''
  metrics = (experiment.config.evaluate.metrics or experiment.task.metrics) if experiment else ('bleu', 'chrf', 'ter')
  views = [Views([side[name] for name in ids], language) for side in sides]
  print(f'{len(ids)} examples\n  a  {paths[0]}\n  b  {paths[1]}')
  results = {}
  for name in metrics:
    found = results[name] = paired_bootstrap(*(view.statistics(name) for view in views), METRICS[name].value)
    print(f'{name:<12} a {found["value"]:.4f}  b {found["value"] - found["difference"]:.4f}  a - b {found["difference"]:+.4f}  p {found["p"]:.3f}')
  return results


def _predictions_of(place: str, split: str) -> pathlib.Path:
  """A predictions file itself, or the newest of a run folder for a split (the one that is there, when there is one)."""
  path = pathlib.Path(place)
  if path.is_file():
    return path
  named = [(p, runs.PREDICTIONS.fullmatch(p.stem)) for p in (path / 'predictions').glob('*.jsonl')]
  found = [p for p, match in named if match and match['split'] == (split or match['split'])]
  if not found:
    raise UserError(f'{place}: no predictions{f" of {split!r}" if split else ""}. `./launch.sh evaluate {place}` writes them.')
  return max(found, key=lambda p: p.stat().st_mtime)


def ablate(workdir: str, splits: tuple, settings: dict) -> list[dict]:
  """Scores a run with its inputs as they are, each modality given to the wrong examples, each left out, and source words masked."""
  experiment = Experiment.of_run(workdir, settings)
  config, evaluator = experiment.config, experiment.evaluator()
  metrics, tables, params = config.evaluate.metrics or experiment.task.metrics, [], None
  for split in splits or experiment.splits('test'):
    if params is None:
      params, step = params_of(experiment, experiment.loader(split, experiment.table(split, False), config.evaluate.batch_size))
    predictions = {}
    for condition in conditions_of(experiment):
      name = f'{file_name(split)}-{step}' + (f'-{condition}'.replace(', ', '-').replace(' ', '_') if any(condition) else '')
      predictions[str(condition)] = rows = decode(experiment, evaluator, params, split, condition=condition, progress=name)
      runs.write_jsonl(experiment.folder / 'predictions' / f'{name}.jsonl', rows)
    table = ablation_table(predictions, metrics, config.evaluate.bootstrap_samples, config.data.languages.target)
    print(f'\n{split}, step {step}\n{format_table(table, metrics)}')
    runs.write_json(experiment.folder / 'ablation' / f'{file_name(split)}.json', {'split': split, 'step': step, 'rows': table})
    tables.append(table)
  return tables


def conditions_of(experiment: Experiment) -> list[Condition]:
  """What can be taken away from this model; as it is comes first. Lists of words to mask are English."""
  others = [modality for modality in experiment.modalities if modality != 'text']
  conditions = [Condition(), *(Condition(shuffled=m) for m in experiment.modalities), *(Condition(without=m) for m in others)]
  if 'text' in experiment.modalities and experiment.config.data.languages.text in ('', 'en'):
    conditions += [Condition(masked=kind, shuffled=m) for kind in WORDS for m in ('', *others)]
  return conditions


def translate(workdir: str, image: str, n_best: int, scores: bool, settings: dict) -> None:
  """Translates the lines of standard input, in order; on a terminal it answers line by line."""
  settings = settings | ({'decoding.n_best': str(n_best)} if n_best > 1 else {})
  experiment = Experiment.of_run(workdir, settings)
  if 'text' not in experiment.modalities:
    raise UserError(f'{workdir} reads {", ".join(experiment.modalities)} and no text: use `./launch.sh predict`.')
  if image and 'image' not in experiment.modalities:
    raise UserError(f'--image {image}: this model reads no picture.')
  picture = {}
  if image:
    (example,) = inputs_of(image, ('image',))
    picture = {'image': example['image']}
  predictor = Predictor(experiment)
  answer = lambda examples: predictor(examples, 'translate') if examples else []
  if sys.stdin.isatty():
    print('One sentence a line; Ctrl-D ends.')
    lines = iter(lambda: input('> '), None)
    try:
      for number, line in enumerate(lines, 1):
        _show(answer([_line(number, line, picture)]), scores)
    except EOFError:
      print()
    return
  size = experiment.config.evaluate.batch_size
  waiting = []
  for number, line in enumerate(sys.stdin.buffer, 1):
    waiting.append(_line(number, decode_line(line.rstrip(b'\n'), 'standard input', number), picture))
    if len(waiting) == size:
      _show(answer(waiting), scores)
      waiting = []
  _show(answer(waiting), scores)


def _line(number: int, text: str, picture: dict) -> dict:
  return {'id': f'standard input, line {number}', 'text': text.strip(), **picture}


def _show(rows, scores: bool):
  for row in rows:
    for text, value in row.get('n_best') or [(row['hypothesis'], row['score'])]:
      print(f'{value:.4f}\t{text}' if scores else text, flush=True)
