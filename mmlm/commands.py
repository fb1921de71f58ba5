"""What a person can ask for: train, evaluate, predict, prepare, report, and the quick start without arguments."""

import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
import sys
import time

import numpy as np

from mmlm import config as configs
from mmlm import runs
from mmlm.data import batching
from mmlm.data import prepare as data
from mmlm.data.manifest import ManifestSource, check_pictures
from mmlm.data.pipeline import Table, stream
from mmlm.errors import UserError
from mmlm.evaluation.caption_metrics import METRICS
from mmlm.evaluation.evaluator import score, shuffle_inputs
from mmlm.experiment import Experiment
from mmlm.parallel import describe_devices
from mmlm.reports.html import write_report
from mmlm.training import loop
from mmlm.training.optimizers import make_optimizer, make_schedule
from mmlm.training.step import StepOptions, initial_state
from mmlm.trees import count, differences, nearest

PICTURES = {'.jpg', '.jpeg', '.png', '.webp', '.bmp', '.gif', '.tif', '.tiff'}
QUICK_START = 'configs/captioning/unicode_pictures.py'
GREEDY = {'method': 'greedy', 'n_best': 1, 'temperature': 1.0, 'top_k': 0, 'top_p': 1.0}


def environment() -> dict:
  """What environment.json holds."""
  packages = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'tensorflow-datasets', 'numpy', 'tokenizers')
  try:
    describe = ['git', '-C', str(configs.ROOT), 'describe', '--always', '--dirty']
    commit = subprocess.run(describe, capture_output=True, text=True).stdout.strip() or None
  except OSError:  # there is no git
    commit = None
  return {
    'command': ' '.join(sys.argv),
    'started': time.strftime('%Y-%m-%d %H:%M:%S %z'),
    'commit': commit,
    'python': platform.python_version(),
    'versions': {name: importlib.metadata.version(name) for name in packages},
    'devices': describe_devices(),
    'cpu_count': os.cpu_count(),
  }


def _announce() -> dict:
  """Prints device, memory and versions; warns when a GPU is there and jax does not use it."""
  found = environment()
  devices, versions = found['devices'], found['versions']
  print(
    f'{devices["count"]} x {devices["platform"]} ({devices["kind"]}, {devices["memory_bytes"] / 2**30:.0f} GiB), {found["cpu_count"]} CPU cores; '
    f'Python {found["python"]}, jax {versions["jax"]}, flax {versions["flax"]}'
  )
  if devices['platform'] == 'cpu' and (os.path.exists('/dev/nvidiactl') or os.path.exists('/dev/kfd')):
    print("WARNING: this machine has a GPU, but jax runs on the CPU: pip install 'jax[cuda12]' (or unset JAX_PLATFORMS).")
  return found


def _claim(folder: pathlib.Path, config) -> None:
  """Writes the config into a fresh run folder, or checks that the run in it is this config's."""
  wanted, path = json.loads(json.dumps(config.to_dict())), folder / 'config.json'
  if path.exists() and not any((folder / name).exists() for name in ('metrics.jsonl', 'checkpoints')):
    # A start that failed before the first step: there is nothing to lose.
    (folder / 'tokenizer.json').unlink(missing_ok=True)
  elif path.exists():
    lines = differences(runs.read_json(path), wanted)
    lines = [line for line in lines if not line.startswith(configs.NOT_PART_OF_THE_RUN)]
    if lines:
      raise UserError(
        f'{folder} holds a run of another config. It differs in\n  ' + '\n  '.join(lines) + '\n'
        'Give another --workdir, or the settings of that run.'
      )
  elif folder.exists() and any(folder.iterdir()):
    raise UserError(f'{folder} is not empty and holds no run (no config.json). Give another --workdir.')
  runs.write_json(path, wanted)


def train(config_path: str, workdir: str, settings: dict, skip_broken: bool = False) -> None:
  """Trains CONFIG in --workdir, or goes on with the run that is there."""
  settings = settings | ({'data.skip_broken': 'True'} if skip_broken else {})
  config = configs.override(configs.load_config(config_path), settings)
  folder = pathlib.Path(workdir)
  experiment = Experiment(config, folder)
  (split,) = experiment.splits('train')
  experiment.source(split), [experiment.source(s) for s in experiment.splits('valid')]
  experiment.search_options()
  _claim(folder, config)
  runs.write_json(folder / 'environment.json', _announce())
  parts, state = _training_parts(experiment, split)
  print(f'{count(state.params):,} parameters; run folder {folder}', flush=True)
  try:
    loop.train(parts, experiment.parallel, state, experiment.checkpoints(writing=True), folder)
  except loop.Interrupted as stopped:
    print(stopped)
    sys.exit(130)


def _training_parts(experiment: Experiment, split: str):
  config, batch_size = experiment.config, experiment.config.train.batch_size
  validate = _validation(experiment)
  table = experiment.table(split, with_targets=True)
  plan = batching.TrainPlan(table.lengths, batch_size, experiment.buckets, config.seed)
  loader = experiment.loader(split, table, batch_size, train=True)
  steps = lambda text, key: configs.to_steps(text, key, batch_size, plan.steps_per_epoch)
  total = steps(config.train.duration, 'train.duration')
  with stream(plan, loader, 0, 1) as first:
    params = experiment.initial_params(next(first))
  rate = make_schedule(config.optimizer, total, batch_size, plan.steps_per_epoch)
  model, task, smoothing = experiment.model, experiment.task, config.train.label_smoothing

  def loss(params, batch, rng):
    losses, weights = task.losses(model, params, batch, smoothing, rng)
    return losses.sum(), weights.sum()

  options = StepOptions(make_optimizer(config.optimizer, rate, params), loss, config.train.accumulate, config.train.ema_decay)
  schedule = loop.Schedule(
    total, max(1, steps(config.train.log_every, 'train.log_every')),
    max(1, steps(config.train.eval_every, 'train.eval_every')), config.train.patience,
  )  # fmt: skip
  print(f'{split}: {len(table.ids):,} examples, {plan.steps_per_epoch} steps an epoch, {total} steps in all')
  parts = loop.Parts(
    options=options,
    learning_rate=rate,
    stream=lambda start, stop: stream(plan, loader, start, stop, config.data.workers),
    ids=lambda number: [table.ids[i] for i in plan[number].indices],
    validate=validate,
    schedule=schedule,
  )
  return parts, initial_state(params, options, config.seed)


def _validation(experiment: Experiment):
  config, evaluator = experiment.config, experiment.evaluator(**GREEDY)
  size, limit, monitor = config.evaluate.batch_size, config.data.max_valid_examples, config.train.monitor
  splits = experiment.splits('valid')
  prefixes = [f'{split}/' if len(splits) > 1 else '' for split in splits]
  known = [f'{prefix}{name}' for prefix in prefixes for name in ('loss', 'perplexity', *METRICS)]
  if monitor not in known:
    raise UserError(f'train.monitor={monitor!r}: no such validation score. Nearest: {nearest(monitor, known)!r}.')
  metric = monitor.rpartition('/')[2]
  loaders = [experiment.loader(split, experiment.table(split, True, limit), size) for split in splits]

  def validate(params) -> dict:
    params, values = experiment.parallel.replicate(params), {}
    for split, prefix, loader in zip(splits, prefixes, loaders):
      found = evaluator.loss(params, loader, experiment.buckets, config.data.workers)
      if metric in METRICS:
        rows = _decode(experiment, evaluator, params, split, limit)
        found |= {name: s['value'] for name, s in score(rows, (metric,), 1).items()}
      values |= {f'{prefix}{name}': value for name, value in found.items()}
    return values

  return validate


def _decode(experiment, evaluator, params, split, limit=0, shuffled=False, progress=''):
  """Predictions of a split with their references."""
  config, source = experiment.config, experiment.source(split)
  table = experiment.table(split, False, limit)
  given = shuffle_inputs(table, config.seed) if shuffled else table
  loader = experiment.loader(split, given, config.evaluate.batch_size)
  rows = evaluator.predict(params, loader, experiment.buckets, config.data.workers, progress)
  for row, record in zip(rows, table.records):
    example = source[int(record)]
    row['references'] = list(example['targets'])
    row['input'] = {m: example['text'] if m == 'text' else example['id'] for m in experiment.modalities}
  return rows


def evaluate(workdir: str, splits: tuple, settings: dict, greedy: bool = False) -> list[dict]:
  """Decodes and scores splits with the best checkpoint; the same with shuffled inputs beside. Returns the score files."""
  experiment = Experiment.of_run(workdir, settings)
  config = experiment.config
  _announce()
  changes = GREEDY if greedy else {}
  evaluator, decoding = experiment.evaluator(**changes), config.decoding.to_dict() | changes
  written = []
  params = None
  for split in splits or experiment.splits('test'):
    if params is None:
      params, step = _best_params(experiment, split)
    for shuffled in (False, True) if config.evaluate.shuffled else (False,):
      began = time.monotonic()
      tag = f'{_file_name(split)}-{step}' + _decoding_tag(decoding, config) + ('-shuffled' if shuffled else '')
      rows = _decode(experiment, evaluator, params, split, shuffled=shuffled, progress=tag)
      scores = score(rows, config.evaluate.metrics or experiment.task.metrics, config.evaluate.bootstrap_samples)
      result = {
        'split': split, 'step': step, 'decoding': decoding, 'shuffled': shuffled, 'n': len(rows), 'scores': scores,
        'checkpoint': config.evaluate.checkpoint, 'average': config.evaluate.average,
        'seconds': round(time.monotonic() - began, 1),
      }  # fmt: skip
      runs.write_jsonl(experiment.folder / 'predictions' / f'{tag}.jsonl', rows)
      runs.write_json(experiment.folder / 'scores' / f'{tag}.json', result)
      written.append(result)
      _print_scores(result)
  return written


def _file_name(split: str) -> str:
  return pathlib.Path(split).stem if split.endswith('.jsonl') else split.replace('/', '_')


def _decoding_tag(decoding: dict, config) -> str:
  return '' if decoding['method'] == config.decoding.method else f'-{decoding["method"]}'


def _print_scores(result: dict):
  name = f'{result["split"]} ({result["decoding"]["method"]})' + (', inputs shuffled' if result['shuffled'] else '')
  print(f'{name}, {result["n"]} examples, step {result["step"]}:')
  for metric, s in result['scores'].items():
    print(f'  {metric:<12} {s["value"]:.4f}   95 % [{s["low"]:.4f}, {s["high"]:.4f}]')


def _best_params(experiment: Experiment, split: str):
  """Replicated parameters of the chosen checkpoint, and its step; `split` gives a batch for the shapes."""
  table = experiment.table(split, False).select(np.arange(1))
  loader = experiment.loader(split, table, experiment.config.evaluate.batch_size)
  return _params_for(experiment, loader)


def _params_for(experiment, loader):
  with stream([batching.Batch(np.arange(1), experiment.buckets[0])], loader, 0, 1) as batches:
    abstract = experiment.abstract_params(next(batches))
  options, checkpoints = experiment.config.evaluate, experiment.checkpoints()
  params, step = checkpoints.params(abstract, options.checkpoint, options.average)
  checkpoints.close()
  return experiment.parallel.replicate(params), step


def predict(workdir: str, input: str, output: str, settings: dict) -> list[dict]:
  """Captions for a picture, a folder of pictures, or a manifest; prints them, and writes JSON lines to --output."""
  experiment = Experiment.of_run(workdir, settings)
  source = inputs_of(input, experiment.modalities)
  texts = [example.get('text', '') for example in source]
  table = Table([example['id'] for example in source], np.arange(len(source)), [[]] * len(source),
                experiment.tokenizer.encode_batch(texts))  # fmt: skip
  table = experiment.fitting(table, input)
  devices = experiment.parallel.devices
  size = min(experiment.config.evaluate.batch_size, -(-len(table.ids) // devices) * devices)
  loader = experiment.loader_of(source, table, size)
  params, _ = _params_for(experiment, loader)
  rows = experiment.evaluator().predict(params, loader, experiment.buckets)
  for row in rows:
    print(f'{row["id"]}\t{row["hypothesis"]}')
    for text, value in row.get('n_best', [])[1:]:
      print(f'\t{text}\t{value:.3f}')
  if output:
    runs.write_jsonl(output, rows)
  return rows


def inputs_of(path: str, modalities: tuple) -> list[dict]:
  """Raw examples of a picture, a folder of pictures, or a manifest (targets are not needed)."""
  path = pathlib.Path(path)
  if path.suffix == '.jsonl':
    examples = [*ManifestSource(path, require=modalities)]
  else:
    examples = _pictures(path, modalities)
  for example in examples:
    if example.get('image') == b'':  # elsewhere this means that an example has none
      raise UserError(f'--input {path}: the picture of {example["id"]!r} has zero bytes.')
  return examples


def _pictures(path: pathlib.Path, modalities: tuple) -> list[dict]:
  if not path.exists():
    raise UserError(f'--input {path}: no such file or folder.')
  files = sorted(p for p in path.rglob('*') if p.suffix.lower() in PICTURES) if path.is_dir() else [path]
  if not files:
    raise UserError(f'--input {path}: no picture ({", ".join(sorted(PICTURES))}) in this folder.')
  if modalities != ('image',):
    raise UserError(f'--input {path}: this model reads {", ".join(modalities)}: give a manifest (JSON lines) with these fields.')
  return [{'id': str(file.relative_to(path) if path.is_dir() else file.name), 'image': file.read_bytes()} for file in files]


def prepare(name: str, source: str, data_dir: str, skip_broken: bool, settings: dict) -> None:
  """Builds the data set NAME from its original files, or checks every line and picture of the manifest NAME."""
  if settings:
    raise UserError('prepare reads no config: it has --source, --data_dir and --skip_broken.')
  if name.endswith('.jsonl'):
    examples = ManifestSource(name, require=())
    print(f'{name}: {len(check_pictures(examples, data_dir, skip_broken))} of {len(examples)} examples are good.')
  else:
    print(f'Prepared: {data.prepare(name, source or None, data_dir, skip_broken)}')


def report(workdir: str, settings: dict) -> None:
  """Writes report.html into a run folder."""
  experiment = Experiment.of_run(workdir, settings)
  path = write_report(experiment.folder, pictures_of(experiment))
  print(f'Report: {path}')


def pictures_of(experiment: Experiment):
  """id -> encoded picture of the run's test and validation examples, or None."""
  places = {}
  for part in ('valid', 'test'):
    for split in experiment.splits(part):
      source = experiment.source(split)
      places |= {source[i]['id']: (source, i) for i in range(len(source))}

  def picture(identity):
    source, i = places.get(identity, (None, 0))
    return source[i].get('image') if source else None

  return picture


def quick_start(workdir: str, settings: dict):
  """Trains on generated pictures of characters, evaluates on faces and characters never seen, and writes the report."""
  train(QUICK_START, workdir, settings)
  results = evaluate(workdir, (), {})
  print('\nFrom the held-out faces (true name / caption):')
  first = next(r for r in results if not r['shuffled'])
  rows = runs.read_jsonl(pathlib.Path(workdir) / 'predictions' / f'{_file_name(first["split"])}-{first["step"]}.jsonl')
  for row in rows[:: max(1, len(rows) // 8)][:8]:
    print(f'  {row["references"][0]:<48} {row["hypothesis"]}')
  print()
  report(workdir, {})
