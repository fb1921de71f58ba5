"""What a person can ask for: train, evaluate, predict, prepare, and the quick start without arguments."""

import contextlib
import importlib.metadata
import itertools
import json
import os
import pathlib
import platform
import shlex
import subprocess
import sys
import time

import jax

from mmlm import config as configs
from mmlm.cli.studies import by_id
from mmlm.data.datasets import prepare as data
from mmlm.data.sources.manifest import ManifestSource, check_files
from mmlm.data.sources.parallel_text import read_lines
from mmlm.data.transforms.audio import SUFFIXES
from mmlm.data.transforms.features import is_features, read_features
from mmlm.evaluation.metrics.label_metrics import confusion_table
from mmlm.evaluation.metrics.speech_metrics import error_report, format_report, timing
from mmlm.evaluation.score_predictions import Predictions, check_reference_words, score_predictions
from mmlm.experiment.experiment import Experiment
from mmlm.experiment.prediction import Condition, Predictor, decode, file_name, params_of
from mmlm.experiment.training import GREEDY, training_parts
from mmlm.inference.generation import evaluate_text
from mmlm.parallel import describe_devices, hosts
from mmlm.reports.build import report
from mmlm.training import loop
from mmlm.training.exported_weights import is_export
from mmlm.training.optimizers import rates_of
from mmlm.utils import run_dir as runs
from mmlm.utils.errors import UserError
from mmlm.utils.pytree import count, differences
from mmlm.word_vectors import vector_experiment as vectors

# {modality: what its files are called, their endings}
FILES = {
  'image': ('picture', {'.jpg', '.jpeg', '.png', '.webp', '.bmp', '.gif', '.tif', '.tiff'}),
  'audio': ('sound', SUFFIXES | {'.npy'}),
}
# Tasks whose parameters are tables: what their experiment is, and what its training needs.
TABLES = {'word_vectors': (vectors.VectorExperiment, vectors.training_parts)}
QUICK_START = 'configs/captioning/unicode_pictures.py'


def environment() -> dict:
  """What environment.json holds."""
  packages = (
    'jax',
    'jaxlib',
    'flax',
    'optax',
    'orbax-checkpoint',
    'grain',
    'tensorflow-datasets',
    'numpy',
    'tokenizers',
  )
  return {
    'command': shlex.join(sys.argv),
    'started': time.strftime('%Y-%m-%d %H:%M:%S %z'),
    'commit': _commit(),
    'python': platform.python_version(),
    'versions': {name: importlib.metadata.version(name) for name in packages},
    'devices': describe_devices(),
    'cpu_count': os.cpu_count(),
  }


def _commit() -> str | None:
  """The commit that runs, with '-dirty' where files of it were changed; what `reproduce` writes between two runs is not counted."""

  def git(*words):
    return subprocess.run(
      ['git', '-C', str(configs.ROOT), *words], capture_output=True, text=True
    ).stdout.strip()

  written = (':!experiments/results', ':!experiments/README.md', ':!README.md')
  try:
    commit = git('describe', '--always')
    changed = git('status', '--porcelain', '--untracked-files=no', '--', '.', *written)
    if changed:
      return f'{commit}-dirty'
    return commit or None
  except OSError:  # there is no git
    return None


def _announce() -> dict:
  """Prints device, memory and versions; warns when a GPU is there and jax does not use it."""
  found = environment()
  devices = found['devices']
  versions = found['versions']
  print(
    f'{devices["count"]} x {devices["platform"]} ({devices["kind"]}, {devices["memory_bytes"] / 2**30:.0f} GiB), {found["cpu_count"]} CPU cores; '
    f'Python {found["python"]}, jax {versions["jax"]}, flax {versions["flax"]}'
  )
  if devices['platform'] == 'cpu' and (
    os.path.exists('/dev/nvidiactl') or os.path.exists('/dev/kfd')
  ):
    print(
      "WARNING: this machine has a GPU, but jax runs on the CPU: pip install 'jax[cuda12]' (or unset JAX_PLATFORMS)."
    )
  return found


def check_folder(folder: pathlib.Path) -> None:
  """UserError where a folder holds something that is no run to go on with."""
  if is_export(folder):
    raise UserError(
      f'{folder} holds an exported model, which is not trained. To start from it: --config.train.start_from={folder}'
    )
  runs.refuse_foreign(folder, 'config.json', 'run')


def claim(folder: pathlib.Path, config) -> None:
  """Writes the config into a fresh run folder, or checks that the run in it is this config's; `check_folder` came before."""
  wanted = json.loads(json.dumps(config.to_dict()))
  path = folder / 'config.json'
  if path.exists() and not any(
    (folder / name).exists() for name in ('metrics.jsonl', 'checkpoints')
  ):
    # A start that failed before the first step: there is nothing to lose.
    (folder / 'tokenizer.json').unlink(missing_ok=True)
  elif path.exists():
    stored = configs.complete(
      configs.from_dict(runs.read_json(path))
    ).to_dict()  # keys that are newer than the run have their defaults
    stored = json.loads(json.dumps(stored))
    lines = differences(configs.without_resumable(stored), configs.without_resumable(wanted))
    if lines:
      listed = ''.join(f'\n  {line}' for line in lines)
      raise UserError(
        f'{folder} holds a run of another config. It differs in{listed}\n'
        'Give another --workdir, or the settings of that run.'
      )
  runs.write_json(path, wanted)


@loop.preemptible()
def train(
  config_path: str,
  workdir: str,
  settings: dict,
  skip_broken: bool = False,
  coordinator: str = '',
  processes: int = 0,
  process: int = -1,
) -> None:
  """Trains CONFIG in --workdir, or goes on with the run that is there; as one of several processes where `hosts.join` finds them."""
  hosts.join(coordinator, processes, process)
  settings = settings | ({'data.skip_broken': 'True'} if skip_broken else {})
  config = configs.override(configs.load_config(config_path), settings)
  kind, parts_of = TABLES.get(config.task, (Experiment, training_parts))
  experiment = kind(config, workdir)
  with contextlib.ExitStack() as held:
    with hosts.writer_first():  # others find data sets, tokenizer and grids made
      parts, state = _prepared(experiment, parts_of, held)
    try:
      loop.train(
        parts, experiment.parallel, state, experiment.checkpoints(writing=True), experiment.folder
      )
    except loop.Interrupted as stopped:
      print(stopped)
      sys.exit(stopped.code)


def _prepared(experiment: Experiment, parts_of, held: contextlib.ExitStack) -> tuple:
  """What `loop.train` needs, by `parts_of`; the run folder is claimed, and locked as long as `held` is open."""
  folder = experiment.folder
  config = experiment.config
  (split,) = experiment.splits('train')
  for name in (
    split,
    *experiment.splits('valid'),
  ):  # what is wrong with them is said before anything is written
    experiment.rows(name)
  experiment.search_options()
  check_folder(folder)  # before a lock is left in it
  if hosts.writes():
    held.enter_context(contextlib.closing(runs.lock(folder)))
    claim(folder, config)
    runs.write_json(folder / 'environment.json', _announce())
  parts, state = parts_of(experiment, split)
  learned = sum(
    leaf.size
    for leaf, rate in zip(
      *map(jax.tree.leaves, (state.params, rates_of(config.optimizer, state.params)))
    )
    if rate
  )
  print(
    f'{count(state.params):,} parameters, {learned:,} of them learn; run folder {folder}',
    flush=True,
  )
  return parts, state


def evaluate(
  workdir: str, splits: tuple, settings: dict, greedy: bool = False, text_from: str = ''
) -> list[dict]:
  """Decodes and scores splits with the best checkpoint; the same with shuffled inputs beside. Returns the score files.

  `text_from`: a predictions file, whose hypotheses are read in place of the texts of the splits.
  """
  if _holds_tables(workdir):
    return vectors.evaluate(workdir, splits, settings, greedy, text_from)
  experiment = Experiment.of_run(workdir, settings)
  if text_from:
    experiment.read_texts(
      {name: row['hypothesis'] for name, row in by_id(text_from).items()}, text_from
    )
  config = experiment.config
  _announce()
  if config.task == 'language_model' and not experiment.modalities:
    return evaluate_text(experiment, splits)
  changes = GREEDY if greedy else {}
  evaluator = experiment.evaluator(align=True, **changes)
  # labels are not searched for
  if experiment.task.answers == 'targets':
    decoding = config.decoding.to_dict() | changes
  else:
    decoding = {}
  if decoding and decoding['method'] != config.decoding.method:
    method = f'-{decoding["method"]}'
  else:
    method = ''
  splits = splits or experiment.splits('test')
  params, step = params_of(
    experiment,
    experiment.loader(splits[0], experiment.table(splits[0], False), config.evaluate.batch_size),
  )
  for split in splits:  # before anything is decoded
    source = experiment.source(split)
    check_reference_words((source[i]['targets'] for i in range(len(source))), split, config)
  written = []
  for split, shuffled in itertools.product(
    splits, (False, True) if config.evaluate.shuffled else (False,)
  ):
    began = time.monotonic()
    tag = (
      f'{file_name(split)}-{step}{method}'
      + (f'-text_from_{_named(text_from)}' if text_from else '')
      + ('-shuffled' if shuffled else '')
    )
    condition = Condition(shuffled='inputs' if shuffled else '')
    rows = decode(experiment, evaluator, params, split, condition=condition, progress=tag)
    speech = timing(rows, time.monotonic() - began)
    views = Predictions(rows, config.data.languages.target)
    metrics = config.evaluate.metrics or experiment.task.metrics
    scores = score_predictions(views, metrics, config.evaluate.bootstrap_samples)
    if 'wer' in scores or 'cer' in scores:
      speech |= error_report(rows, views.statistics('wer'), views.statistics('cer'))
    result = {
      'split': split,
      'step': step,
      'decoding': decoding,
      'shuffled': shuffled,
      'n': len(rows),
      'scores': scores,
      'checkpoint': config.evaluate.checkpoint,
      'average': config.evaluate.average,
      'seconds': round(time.monotonic() - began, 1),
      **({'text_from': text_from} if text_from else {}),
      **speech,
    }
    runs.write_jsonl(experiment.folder / 'predictions' / f'{tag}.jsonl', rows)
    runs.write_json(experiment.folder / 'scores' / f'{tag}.json', result)
    written.append(result)
    if decoding:
      told = [f'({decoding["method"]})']
    else:
      told = []
    told += [f'with the texts of {text_from}'] if text_from else []
    told += ['with inputs shuffled'] if shuffled else []
    print(f'{" ".join([split, *told])}, {len(rows)} examples, step {step}:')
    for metric, s in scores.items():
      print(f'  {metric:<12} {s["value"]:.4f}   95 % [{s["low"]:.4f}, {s["high"]:.4f}]')
    if speech:
      print(format_report(speech))
    if config.task == 'classification' and len(config.model.head.classes) <= 12:
      names, table = confusion_table(rows)
      width = max(map(len, names))
      print(
        '\n'.join(
          f'  {name:<{width}} said '
          + ', '.join(f'{said} {count}' for said, count in zip(names, row))
          for name, row in zip(names, table)
        )
      )
  return written


def _holds_tables(workdir: str) -> bool:
  path = pathlib.Path(workdir) / 'config.json'
  return path.is_file() and runs.read_json(path).get('task') in TABLES


def _named(path: str) -> str:
  """A predictions file as part of a file's name: its run and split."""
  path = pathlib.Path(path).absolute()
  return f'{path.parents[1].name}_{path.stem}'


def predict(workdir: str, input: str, output: str, settings: dict) -> list[dict]:
  """Answers for what `inputs_of` reads; prints them, and writes JSON lines to --output."""
  experiment = Experiment.of_run(workdir, settings)
  if not experiment.modalities:
    raise UserError(
      f'{workdir} holds a language model, which reads no input: use `./launch.sh generate {workdir} --prompt TEXT`.'
    )
  source = inputs_of(input, experiment.modalities)
  rows = Predictor(experiment)(source, f'--input {input}')
  for row in rows:
    print(f'{row["id"]}\t{row["hypothesis"]}')
    for text, value in row.get('n_best', [])[1:]:
      print(f'\t{text}\t{value:.3f}')
  if output:
    runs.write_jsonl(output, rows)
  return rows


def inputs_of(path: str, modalities: tuple) -> list[dict]:
  """Raw examples of a picture or sound, a folder of these, a sentence, a file of sentences, or a manifest (targets are not needed)."""
  if modalities == ('text',) and not path.endswith('.jsonl'):
    return _sentences(path)
  path = pathlib.Path(path)
  if path.suffix == '.jsonl':
    examples = [*ManifestSource(path, require=modalities)]
  else:
    examples = _files(path, modalities)
  for example in examples:
    for modality, (what, _) in FILES.items():
      if (
        isinstance(data := example.get(modality), bytes) and not data
      ):  # elsewhere this means that an example has none
        raise UserError(f'--input {path}: the {what} of {example["id"]!r} has zero bytes.')
  return examples


def _files(path: pathlib.Path, modalities: tuple) -> list[dict]:
  """A file, or those below a folder, for a model that reads one modality whose files are known."""
  what, endings = FILES.get(modalities[0], FILES['image'])
  if path.is_dir():
    files = sorted(p for p in path.rglob('*') if p.suffix.lower() in endings)
  else:
    files = [path]
  for ok, wrong in (
    (path.exists(), 'no such file or folder.'),
    (
      modalities in (('image',), ('audio',)),
      f'this model reads {", ".join(modalities)}: give a manifest (JSON lines) with these fields.',
    ),
    (files, f'no {what} ({", ".join(sorted(endings))}) in this folder.'),
  ):
    if not ok:
      raise UserError(f'--input {path}: {wrong}')

  def read(file):
    if modalities == ('audio',) and is_features(file):
      return read_features(file)
    return file.read_bytes()

  return [
    {'id': str(file.relative_to(path)) if path.is_dir() else file.name, modalities[0]: read(file)}
    for file in files
  ]


def _sentences(given: str) -> list[dict]:
  """A file with a sentence a line, or one sentence as it is."""
  if not os.path.isfile(given):
    if not given.strip() or given.endswith(('.txt', '.tsv')):
      raise UserError(
        f'--input {given!r}: {"an empty sentence" if not given.strip() else "no such file"}.'
      )
    return [{'id': 'sentence', 'text': given}]
  lines = read_lines(given)
  if empty := [number for number, line in enumerate(lines, 1) if not line.strip()] or [1] * (
    not lines
  ):
    raise UserError(f'--input {given}, line {empty[0]}: empty.')
  return [{'id': f'line {number}', 'text': line} for number, line in enumerate(lines, 1)]


def prepare(name: str, source: str, data_dir: str, skip_broken: bool, settings: dict) -> None:
  """Builds the data set NAME from its original files, or checks every line, picture and sound of the manifest NAME."""
  if settings:
    raise UserError('prepare reads no config: it has --source, --data_dir and --skip_broken.')
  if name.endswith('.jsonl'):
    examples = ManifestSource(name, require=())
    print(
      f'{name}: {len(check_files(examples, data_dir, skip_broken))} of {len(examples)} examples are good.'
    )
  else:
    print(f'Prepared: {data.prepare(name, source or None, data_dir, skip_broken)}')


def quick_start(workdir: str, settings: dict):
  """Trains on generated pictures of characters, evaluates on faces and characters never seen, and writes the report."""
  train(QUICK_START, workdir, settings)
  results = evaluate(workdir, (), {})
  print('\nFrom the held-out faces (true name / caption):')
  first = next(r for r in results if not r['shuffled'])
  rows = runs.read_jsonl(
    pathlib.Path(workdir) / 'predictions' / f'{file_name(first["split"])}-{first["step"]}.jsonl'
  )
  for row in rows[:: max(1, len(rows) // 8)][:8]:
    print(f'  {row["references"][0]:<48} {row["hypothesis"]}')
  print()
  report([workdir], {})
