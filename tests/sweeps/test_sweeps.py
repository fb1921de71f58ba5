"""Sweeps: spaces, refusals, failed and killed trials, the table of runs, groups of one shape."""

import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT
from killed_sweeps import rounds
from optuna.trial import FixedTrial
from program import done, refused

from mmlm import config as configs
from mmlm.sweeps import executors, spaces
from mmlm.sweeps.listing import find_runs, runs_table, summarize_run
from mmlm.sweeps.shapes import groups_of, numbers_of
from mmlm.sweeps.slurm_jobs import import_submitit
from mmlm.sweeps.study import Plan, Sweep
from mmlm.utils import run_dir as runs
from mmlm.utils.errors import UserError

SPEC = 'configs/sentiment/generated.py:smoke,modalities=text'
RATES = spaces.choices('optimizer.learning_rate', 1e-3, 2e-3)


def points(space):
  return [spaces.point_of(space, parameters) for parameters in space.grid()]


# Spaces


def test_products_zips_and_chains_have_the_points_of_their_parts():
  dropout = spaces.choices('model.dropout', 0.1, 0.2, 0.3)
  assert points(spaces.product(RATES, dropout)) == [
    {**a, **b} for a in points(RATES) for b in points(dropout)
  ]
  together = spaces.zip(RATES, spaces.choices('model.dim', 8, 16))
  assert points(together) == [
    {'optimizer.learning_rate': 1e-3, 'model.dim': 8},
    {'optimizer.learning_rate': 2e-3, 'model.dim': 16},
  ]
  both = spaces.chain(spaces.product(RATES, spaces.choices('model.dim', 8)), dropout)
  assert points(both) == points(spaces.product(RATES, spaces.choices('model.dim', 8))) + points(
    dropout
  )
  nested = spaces.product(spaces.chain(together, spaces.chain(RATES, RATES)), dropout)
  assert len(points(nested)) == (2 + 2 + 2) * 3 and set(points(nested)[-1]) == {
    'optimizer.learning_rate',
    'model.dropout',
  }


def test_points_of_a_range_are_within_it_and_evenly_spread():
  found = [point['a'] for point in points(spaces.log_uniform('a', 1e-4, 1e-1, points=4))]
  assert found[0] == 1e-4 and found[-1] == 1e-1 and found == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1])
  assert [point['a'] for point in points(spaces.integers('a', 1, 4, points=9))] == [1, 2, 3, 4]
  with pytest.raises(UserError, match='give it points=4'):
    spaces.uniform('a', 0, 1).grid()
  assert spaces.uniform('a', 0, 1).suggest(FixedTrial({'a': 0.25})) == {'a': 0.25}


@pytest.mark.parametrize(
  'make, says',
  [
    (lambda: spaces.product(RATES, RATES), 'stands in two parts'),
    (lambda: spaces.zip(RATES, spaces.choices('a', 1)), 'expected as many of each'),
    (lambda: spaces.zip(spaces.uniform('a', 0, 1)), 'joins choices'),
    (lambda: spaces.log_uniform('a', 0, 1), 'above 0'),
    (lambda: spaces.choices('a', 1, 1), 'stands twice'),
    (lambda: spaces.integers('a', 0.5, 2), 'whole number'),
  ],
)
def test_spaces_that_make_no_sense_are_refused(make, says):
  with pytest.raises(UserError, match=says):
    make()


# Refusals


@pytest.fixture
def space(tmp_path):
  """Returns a function: body of get_space -> the flag --space with its file."""

  def write(body):
    path = tmp_path / 'space.py'
    path.write_text(f'from mmlm.sweeps.spaces import *\n\ndef get_space():\n  return {body}\n')
    return f'--space={path}'

  return write


@pytest.mark.parametrize(
  'body, more, says',
  [
    (
      "choices('optimizer.learning_rat', 1.0)",
      (),
      ('optimizer.learning_rat: unknown key', 'Nearest: optimizer.learning_rate'),
    ),
    ("choices('model.dropout', 0.1, 'high')", (), ('model.dropout', 'expected float')),
    ("uniform('model.dropout', 0.1, 1.5)", (), ('model.dropout=1.5', 'less than 1')),
    (
      "chain(choices('seed', 1, 2), choices('seed', 2))",
      (),
      ('trials 1 and 2 of the space are the same', "'seed': 2"),
    ),
    ("choices('seed', 1)", ('--seeds=2',), ("names 'seed'",)),
    ("choices('seed', 1", (), ('space.py',)),
    ('3', (), ('returns 3, not a space',)),
    ("choices('seed', 1)", ('--executor=locl',), ("no 'locl'", "'local'")),
    ("choices('seed', 1)", ('--pruner=asa',), ("'asha'",)),
    ("choices('seed', 1)", ('--jobs=-1',), ('--jobs=-1',)),
    ("uniform('model.dropout', 0.1, 0.5)", ('--sampler=grid',), ('points=4',)),
    ("choices('seed', 1)", ('--executor=slurm',), ('there is no sbatch here',)),
  ],
)
def test_wrong_spaces_and_flags_are_refused_before_anything_runs(
  space, tmp_path, monkeypatch, body, more, says
):
  monkeypatch.setenv('PATH', str(tmp_path))
  said = refused('sweep', SPEC, space(body), '--workdir', tmp_path / 'sweep', *more)
  assert all(part in said for part in says), said
  assert not (tmp_path / 'sweep' / 'runs').exists()


def test_a_config_without_a_space_names_the_file_to_write(tmp_path):
  assert 'generated_space.py' in refused('sweep', SPEC, '--workdir', tmp_path / 'sweep')


# Trials whose run folders the tests write themselves


class Backend(executors.Processes):
  """Runs end at once with the outcome of their learning rate: a score, or an error."""

  outcomes = {}
  started = []

  def _start(self, run):
    rate = float(run.settings['optimizer.learning_rate'])
    self.started.append(run.name)
    write_run(run.folder, self.outcomes.get(rate, 0.5))
    return run

  def has_ended(self, run, process):
    return True

  def error(self, run, process):
    return 'its process ended with -9'


def write_run(folder, outcome, monitor='accuracy'):
  """Writes the folder of a run that has ended with a score, died ('dead') or failed (an error)."""
  runs.write_json(folder / 'config.json', {'train': {'monitor': monitor}})
  log = [{'step': 1, 'kind': 'train', 'loss': 1.0}]
  if isinstance(outcome, float):
    log.append({'step': 2, 'kind': 'valid', monitor: outcome})
    runs.write_status(folder, 'done', 2)
  elif outcome == 'dead':
    runs.write_status(folder, 'running', 2, outcome)
  else:
    runs.write_status(folder, 'failed', 2, outcome)
  runs.write_jsonl(folder / 'metrics.jsonl', log)


@pytest.fixture
def make(tmp_path, monkeypatch):
  """Returns a function: space, ... -> a sweep in tmp_path / 'sweep'."""
  monkeypatch.setattr(executors, 'POLL_SECONDS', 0)
  monkeypatch.setattr(Backend, 'started', [])
  config = configs.override(configs.load_config(SPEC), {})

  def made(space, sampler='grid', trials=0, seeds=1, pruner='none'):
    folder = tmp_path / 'sweep'
    folder.mkdir(exist_ok=True)
    return Sweep(folder, Plan(SPEC, config, {}, space, sampler, pruner, trials, seeds))

  return made


def swept(sweep, monkeypatch, outcomes=(), jobs=2):
  """Runs a sweep with these outcomes and returns its results."""
  monkeypatch.setattr(Backend, 'outcomes', dict(outcomes))
  executors.run_apart(Backend(sweep), sweep, jobs)
  return sweep.results()


GRID = spaces.product(spaces.choices('optimizer.learning_rate', 1e-3, 2e-3, 3e-3))


def test_a_failed_trial_has_its_error_in_the_results_and_stops_no_other(
  make, monkeypatch, tmp_path
):
  outcomes = {1e-3: 0.5, 2e-3: 'the loss is nan', 3e-3: 'dead'}
  rows = swept(make(GRID), monkeypatch, outcomes=outcomes)
  assert [row['state'] for row in rows] == ['complete', 'fail', 'fail']
  assert [row['score'] for row in rows] == [0.5, None, None]
  assert 'the loss is nan' in rows[1]['error'] and '-9' in rows[2]['error']
  assert json.loads((tmp_path / 'sweep' / 'results.json').read_text()) == rows
  again = make(GRID)
  assert again.next_runs(0) == [] and again.results() == rows and len(Backend.started) == 3


@pytest.mark.parametrize('sampler, trials', [('grid', 0), ('random', 5), ('tpe', 5)])
def test_a_killed_sweep_resumes_without_training_complete_runs_again(
  make, monkeypatch, tmp_path, sampler, trials
):
  if sampler == 'grid':
    space = GRID
  else:
    space = spaces.log_uniform('optimizer.learning_rate', 1e-4, 1e-2)
  sweep = make(space, sampler, trials)
  finished, unwritten = sweep.next_runs(2)
  write_run(finished.folder, 0.7)
  sweep.ended(finished)
  write_run(unwritten.folder, 0.8)  # complete, but the sweep was killed before it wrote so
  with open(tmp_path / 'sweep' / 'journal.log', 'ab') as file:
    file.write(b'{"op_code": 6, "wor')  # half a line
  (tmp_path / 'sweep' / 'journal.log.lock').touch()
  rows = swept(make(space, sampler, trials), monkeypatch)
  assert [row['score'] for row in rows[:2]] == [0.7, 0.8] and len(rows) == (trials or 3)
  assert not {finished.name, unwritten.name} & set(Backend.started)
  assert len(set(Backend.started)) == len(rows) - 2
  settings = [row['settings']['optimizer.learning_rate'] for row in rows]
  assert len(set(settings)) == len(settings)


def test_the_score_of_a_trial_is_the_mean_of_its_seeds(make):
  sweep = make(RATES, seeds=2)
  first, second, *_ = sweep.next_runs(0)
  assert (first.settings['seed'], second.settings['seed']) == ('0', '1')
  assert first.trial is second.trial
  write_run(first.folder, 0.5)
  write_run(second.folder, 0.7)
  sweep.ended(first)
  assert sweep.results()[0]['state'] == 'running'
  sweep.ended(second)
  assert sweep.results()[0]['score'] == pytest.approx(0.6)


def test_a_point_that_is_drawn_again_gets_its_earlier_score(make, monkeypatch):
  outcomes = {1e-3: 0.25, 2e-3: 0.75}
  rows = swept(make(spaces.product(RATES), 'random', 6), monkeypatch, outcomes, jobs=1)
  rates = [float(row['settings']['optimizer.learning_rate']) for row in rows]
  assert len(rows) == 6 and len(Backend.started) == len(set(rates))
  assert [row['score'] for row in rows] == [outcomes[rate] for rate in rates]
  assert sum('the same as trial' in row['error'] for row in rows) == 6 - len(Backend.started)


def test_a_trial_that_is_worse_than_the_others_is_pruned(make):
  rates = [i * 1e-3 for i in range(1, 8)]
  sweep = make(spaces.choices('optimizer.learning_rate', *rates), pruner='median')
  for run, score in zip(sweep.next_runs(0), (0.9, 0.9, 0.9, 0.9, 0.9, 0.95, 0.1)):
    write_run(run.folder, score)
    if sweep.should_stop(run):
      runs.write_status(run.folder, 'pruned', 2, 'others are better')
    sweep.ended(run)
  assert [row['state'] for row in sweep.results()] == ['complete'] * 6 + ['pruned']


def test_another_sweep_in_the_same_folder_is_refused(make, tmp_path):
  make(GRID)
  with pytest.raises(UserError, match='another sweep. It differs in\n  space'):
    make(RATES)
  command = ('sweep', SPEC, f'--space={space_file(tmp_path)}', '--workdir')
  with runs.lock(tmp_path / 'sweep'):
    message = refused(*command, tmp_path / 'sweep')
  assert f'is in use: process {os.getpid()}' in message
  assert 'holds no sweep' in refused(*command, tmp_path)
  assert not (tmp_path / runs.LOCK).exists()
  (tmp_path / 'sweep' / 'journal.log').write_text('{"op_code": 0}\nnonsense\n{}\n')
  with pytest.raises(UserError, match=r'journal.log cannot be read'):
    make(GRID)


def space_file(folder):
  path = folder / 'other.py'
  path.write_text(
    "from mmlm.sweeps.spaces import choices\n\ndef get_space():\n  return choices('seed', 1, 2)\n"
  )
  return path


def test_a_sweep_that_is_killed_loses_nothing_and_runs_nothing_twice(tmp_path):
  # a sweep that ends before its kill is followed by another
  assert rounds(tmp_path, 1, seconds=0.2) % 6 == 0


# Locks and the table of runs

HOLDS_A_LOCK = """
import sys, time
from mmlm.utils import run_dir
lock = run_dir.lock(sys.argv[1])
print('locked', flush=True)
time.sleep(60)
"""


def test_a_killed_process_loses_its_lock(tmp_path):
  process = subprocess.Popen(
    [sys.executable, '-c', HOLDS_A_LOCK, str(tmp_path)],
    stdout=subprocess.PIPE,
    env=os.environ | {'PYTHONPATH': str(ROOT)},
  )
  assert process.stdout and process.stdout.readline() == b'locked\n'
  assert runs.is_locked(tmp_path)
  with pytest.raises(runs.Busy, match=f'process {process.pid}'):
    runs.lock(tmp_path)
  process.kill()
  process.wait()
  assert not runs.is_locked(tmp_path)
  runs.lock(tmp_path).close()
  assert not runs.is_locked(tmp_path)


def test_a_run_folder_that_a_process_works_in_is_refused(tmp_path):
  data = f'--config.data.dir={tmp_path / "data"}'
  with runs.lock(tmp_path / 'run'):
    message = refused('train', SPEC, '--workdir', tmp_path / 'run', data)
  assert 'is in use' in message


def test_runs_are_listed_with_their_states_even_if_damaged(tmp_path):
  for name, outcome in {'good': 0.5, 'dead': 'dead', 'failed': 'an error\nof two lines'}.items():
    write_run(tmp_path / name, outcome)
  write_run(tmp_path / 'at_work', 0.25)
  (tmp_path / 'half' / 'checkpoints').mkdir(parents=True)
  (tmp_path / 'no_json').mkdir()
  (tmp_path / 'no_json' / 'config.json').write_text('{"train": ')
  write_run(tmp_path / 'deep' / 'er', 0.5)
  (tmp_path / 'deep' / 'er' / 'metrics.jsonl').write_text('[1]\nnonsense\n')
  write_run(tmp_path / 'old', 0.5)
  (tmp_path / 'old' / 'status.json').unlink()
  (tmp_path / 'no_run').mkdir()
  with runs.lock(tmp_path / 'at_work'):
    states = {folder.name: summarize_run(folder).state for folder in find_runs(tmp_path)}
    printed = done('runs', tmp_path)
  assert states == {
    'good': 'done',
    'dead': 'dead',
    'failed': 'failed',
    'at_work': 'running',
    'half': 'half written',
    'no_json': 'half written',
    'er': 'half written',
    'old': 'unknown',
  }
  (line,) = [line for line in printed.splitlines() if '/good' in line]
  assert line.split()[1:5] == ['done', '2/2', '0.5000', 'accuracy']
  assert 'an error' in printed and 'of two lines' not in printed
  assert 'line 1, column' in runs_table(tmp_path / 'no_json', 0.0)
  assert 'no run in it' in refused('runs', tmp_path / 'no_run')
  assert 'no such folder' in refused('runs', tmp_path / 'nowhere')


# Groups of one shape


def config_with(**settings):
  config = configs.load_config(SPEC)
  return configs.override(config, {key.replace('__', '.'): text for key, text in settings.items()})


def test_trials_that_differ_in_traced_keys_are_one_group():
  same = [
    config_with(),
    config_with(seed='3'),
    config_with(optimizer__learning_rate='1e-2'),
    config_with(model__dropout='0.3'),
    config_with(train__duration='4 steps'),
    config_with(train__eval_every='2 steps'),
    config_with(optimizer__weight_decay='0.5'),
  ]
  others = [
    config_with(model__dim='12'),
    config_with(model__dropout='0.0'),
    config_with(optimizer__beta1='0.8'),
    config_with(train__batch_size='8'),
  ]
  groups = groups_of([*same, *others], lambda config: config)
  assert groups == [same, *([config] for config in others)]


def test_trials_with_several_buckets_are_grouped_by_their_seeds():
  configs_of_seeds = [config_with(data__buckets='(8, 16)', seed=seed) for seed in '0101']
  groups = groups_of(configs_of_seeds, lambda config: config)
  assert groups == [configs_of_seeds[::2], configs_of_seeds[1::2]]


def test_numbers_of_trials_are_what_differs_with_a_table_of_rates():
  trials = [config_with(), config_with(optimizer__learning_rate='1e-2')]
  trials.append(config_with(model__dropout='0.3'))
  schedules = [lambda step: 0.1 * step, lambda step: 0.5, lambda step: 1.0]
  numbers = numbers_of(trials, schedules, [3, 2, 3])
  assert set(numbers) == {'model.dropout', 'rates'}
  assert numbers['model.dropout'].tolist() == pytest.approx([0.1, 0.1, 0.3])
  assert numbers['rates'].tolist() == [pytest.approx([0, 0.1, 0.2]), [0.5] * 3, [1] * 3]


def test_jobs_of_an_array_are_submitted_and_waited_for(make, monkeypatch, tmp_path):
  """With submitit's executor of local processes, which has the same methods as that of Slurm."""
  monkeypatch.setattr(executors, 'train_as_job', os.makedirs)
  monkeypatch.setattr(
    executors, 'arguments_of', lambda run, spec: str(tmp_path / 'made' / run.name)
  )
  executor = import_submitit().LocalExecutor(tmp_path / 'jobs')
  executor.update_parameters(timeout_min=5)
  sweep = make(RATES)
  slurm = executors.SlurmArray(sweep, tmp_path / 'jobs', executor)
  found = sweep.next_runs(0)
  jobs = slurm.start(found)
  assert len(jobs) == 2
  for run, job in zip(found, jobs):
    job.wait()
    assert slurm.has_ended(run, job) and (tmp_path / 'made' / run.name).is_dir()
    assert 'ended as' in slurm.error(run, job)
