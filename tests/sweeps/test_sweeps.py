"""Sweeps: what a space holds, what is refused, what is kept when trials fail and sweeps are killed, and how trials are grouped."""

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


def test_products_zips_and_chains_hold_what_their_parts_do():
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
def test_spaces_that_are_none(make, says):
  with pytest.raises(UserError, match=says):
    make()


# What is refused


@pytest.fixture
def space(tmp_path):
  """body -> a file with a space."""

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
def test_wrong_spaces_and_flags_are_said_before_anything_runs(
  space, tmp_path, monkeypatch, body, more, says
):
  monkeypatch.setenv('PATH', str(tmp_path))
  said = refused('sweep', SPEC, space(body), '--workdir', tmp_path / 'sweep', *more)
  assert all(part in said for part in says), said
  assert not (tmp_path / 'sweep' / 'runs').exists()


def test_a_config_without_a_space(tmp_path):
  assert 'generated_space.py' in refused('sweep', SPEC, '--workdir', tmp_path / 'sweep')


# Trials that are stand-ins: what they leave is written here


class Backend(executors.Processes):
  """Runs end at once, and leave what `outcomes` say of their learning rate: a score, or an error."""

  outcomes = {}
  started = []

  def _start(self, run):
    outcome = self.outcomes.get(float(run.settings['optimizer.learning_rate']), 0.5)
    self.started.append(run.name)
    leave(run.folder, outcome)
    return run

  def has_ended(self, run, process):
    return True

  def error(self, run, process):
    return 'its process ended with -9'


def leave(folder, outcome, monitor='accuracy'):
  runs.write_json(folder / 'config.json', {'train': {'monitor': monitor}})
  rows = [{'step': 1, 'kind': 'train', 'loss': 1.0}]
  if isinstance(outcome, float):
    rows.append({'step': 2, 'kind': 'valid', monitor: outcome})
  runs.write_jsonl(folder / 'metrics.jsonl', rows)
  if isinstance(outcome, float):
    error = ''
  else:
    error = outcome
  runs.write_status(folder, {'': 'done', 'dead': 'running'}.get(error, 'failed'), 2, error)


@pytest.fixture
def make(tmp_path, monkeypatch):
  """(folder, space, ...) -> a sweep; its runs are Backend's."""
  monkeypatch.setattr(executors, 'POLL_SECONDS', 0)
  monkeypatch.setattr(Backend, 'started', [])
  config = configs.override(configs.load_config(SPEC), {})

  def made(space, sampler='grid', trials=0, seeds=1, pruner='none'):
    (tmp_path / 'sweep').mkdir(exist_ok=True)
    return Sweep(tmp_path / 'sweep', Plan(SPEC, config, {}, space, sampler, pruner, trials, seeds))

  return made


def swept(sweep, monkeypatch, outcomes=(), jobs=2):
  monkeypatch.setattr(Backend, 'outcomes', dict(outcomes))
  executors.run_apart(Backend(sweep), sweep, jobs)
  return sweep.results()


GRID = spaces.product(spaces.choices('optimizer.learning_rate', 1e-3, 2e-3, 3e-3))


def test_a_failed_trial_is_kept_and_named_and_the_others_go_on(make, monkeypatch, tmp_path):
  outcomes = {1e-3: 0.5, 2e-3: 'the loss is nan', 3e-3: 'dead'}
  rows = swept(make(GRID), monkeypatch, outcomes=outcomes)
  assert [(row['state'], row['score']) for row in rows] == [
    ('complete', 0.5),
    ('fail', None),
    ('fail', None),
  ]
  assert 'the loss is nan' in rows[1]['error'] and '-9' in rows[2]['error']
  assert json.loads((tmp_path / 'sweep' / 'results.json').read_text()) == rows
  again = make(GRID)
  assert again.next_runs(0) == [] and again.results() == rows and len(Backend.started) == 3


@pytest.mark.parametrize('sampler, trials', [('grid', 0), ('random', 5), ('tpe', 5)])
def test_a_sweep_that_was_killed_goes_on_where_it_stopped(
  make, monkeypatch, tmp_path, sampler, trials
):
  if sampler == 'grid':
    space = GRID
  else:
    space = spaces.log_uniform('optimizer.learning_rate', 1e-4, 1e-2)
  sweep = make(space, sampler, trials)
  finished, left = sweep.next_runs(2)
  leave(finished.folder, 0.7)
  sweep.ended(finished)
  leave(left.folder, 0.8)  # done, and killed before that was written down
  with open(tmp_path / 'sweep' / 'journal.log', 'ab') as file:
    file.write(b'{"op_code": 6, "wor')  # half a line
  (tmp_path / 'sweep' / 'journal.log.lock').touch()
  rows = swept(make(space, sampler, trials), monkeypatch)
  assert [row['score'] for row in rows[:2]] == [0.7, 0.8] and len(rows) == (trials or 3)
  assert (
    finished.name not in Backend.started
    and left.name not in Backend.started
    and len(set(Backend.started)) == len(rows) - 2
  )
  settings = [row['settings']['optimizer.learning_rate'] for row in rows]
  assert len(set(settings)) == len(settings)


def test_the_score_is_the_mean_of_the_seeds(make, monkeypatch):
  sweep = make(RATES, seeds=2)
  first, second, *_ = sweep.next_runs(0)
  assert [first.settings['seed'], second.settings['seed']] == [
    '0',
    '1',
  ] and first.trial is second.trial
  leave(first.folder, 0.5)
  leave(second.folder, 0.7)
  sweep.ended(first)
  assert sweep.results()[0]['state'] == 'running'
  sweep.ended(second)
  assert sweep.results()[0]['score'] == pytest.approx(0.6)


def test_a_point_that_was_drawn_before_takes_its_score(make, monkeypatch):
  rows = swept(
    make(spaces.product(RATES), 'random', 6), monkeypatch, outcomes={1e-3: 0.25, 2e-3: 0.75}, jobs=1
  )
  assert len(rows) == 6 and len(Backend.started) == len(
    {row['settings']['optimizer.learning_rate'] for row in rows}
  )
  assert all(
    row['score'] == {'0.001': 0.25, '0.002': 0.75}[row['settings']['optimizer.learning_rate']]
    for row in rows
  )
  assert sum('the same as trial' in row['error'] for row in rows) == 6 - len(Backend.started)


def test_a_trial_that_is_worse_than_others_is_stopped(make):
  sweep = make(
    spaces.choices('optimizer.learning_rate', *(i * 1e-3 for i in range(1, 8))), pruner='median'
  )
  found = sweep.next_runs(0)
  for run, score in zip(found, (0.9, 0.9, 0.9, 0.9, 0.9, 0.95, 0.1)):
    leave(run.folder, score)
    if sweep.should_stop(run):
      runs.write_status(run.folder, 'pruned', 2, 'others are better')
    sweep.ended(run)
  assert [row['state'] for row in sweep.results()] == ['complete'] * 6 + ['pruned']


def test_another_sweep_in_the_same_folder_is_refused(make, tmp_path):
  make(GRID)
  with pytest.raises(UserError, match='another sweep. It differs in\n  space'):
    make(RATES)
  with runs.lock(tmp_path / 'sweep'):
    said = refused(
      'sweep', SPEC, f'--space={space_file(tmp_path)}', '--workdir', tmp_path / 'sweep'
    )
    assert f'is in use: process {os.getpid()}' in said
  assert 'holds no sweep' in refused(
    'sweep', SPEC, f'--space={space_file(tmp_path)}', '--workdir', tmp_path
  )
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
  assert (
    rounds(tmp_path, 1, seconds=0.2) % 6 == 0
  )  # a sweep that ends before its kill is followed by another


# Locks and the table of runs


def test_a_lock_ends_with_its_process_however_that_ends(tmp_path):
  code = f'import sys, time; sys.path.insert(0, {str(ROOT)!r}); from mmlm.utils import run_dir as runs; file = runs.lock({str(tmp_path)!r}); print(1, flush=True); time.sleep(60)'
  process = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE)
  process.stdout.readline()
  assert runs.is_locked(tmp_path)
  with pytest.raises(runs.Busy, match=f'process {process.pid}'):
    runs.lock(tmp_path)
  process.kill()
  process.wait()
  assert not runs.is_locked(tmp_path)
  runs.lock(tmp_path).close()
  assert not runs.is_locked(tmp_path)


def test_a_run_folder_that_is_trained_is_refused(tmp_path):
  with runs.lock(tmp_path / 'run'):
    assert 'is in use' in refused(
      'train',
      SPEC,
      '--workdir',
      tmp_path / 'run',
      f'--config.data.dir={tmp_path / "data"}',
      '--config.parallel.strategy=jit',
    )


def test_runs_are_listed_with_their_states_whatever_is_in_them(tmp_path):
  for name, outcome in {'good': 0.5, 'dead': 'dead', 'failed': 'an error\nof two lines'}.items():
    leave(tmp_path / name, outcome)
  leave(tmp_path / 'at_work', 0.25)
  (tmp_path / 'half' / 'checkpoints').mkdir(parents=True)
  (tmp_path / 'no_json').mkdir()
  (tmp_path / 'no_json' / 'config.json').write_text('{"train": ')
  leave(tmp_path / 'deep' / 'er', 0.5)
  (tmp_path / 'deep' / 'er' / 'metrics.jsonl').write_text('[1]\nnonsense\n')
  leave(tmp_path / 'old', 0.5)
  (tmp_path / 'old' / 'status.json').unlink()
  (tmp_path / 'no_run').mkdir()
  with runs.lock(tmp_path / 'at_work'):
    states = {folder.name: summarize_run(folder).state for folder in find_runs(tmp_path)}
    said = done('runs', tmp_path)
  wanted = {
    'good': 'done',
    'dead': 'dead',
    'failed': 'failed',
    'at_work': 'running',
    'half': 'half written',
    'no_json': 'half written',
    'er': 'half written',
    'old': 'unknown',
  }
  assert states == wanted
  (line,) = [line for line in said.splitlines() if '/good' in line]
  assert line.split()[1:5] == ['done', '2/2', '0.5000', 'accuracy']
  assert (
    'line 1, column' in runs_table(tmp_path / 'no_json', 0.0)
    and 'an error' in said
    and 'of two lines' not in said
  )
  assert 'no run in it' in refused('runs', tmp_path / 'no_run') and 'no such folder' in refused(
    'runs', tmp_path / 'nowhere'
  )


# Groups of one shape


def test_trials_are_grouped_by_what_their_programs_are():
  base = configs.load_config(SPEC)

  def config(**settings):
    return configs.override(
      base, {key.replace('__', '.'): value for key, value in settings.items()}
    )

  same = [
    config(),
    config(seed='3'),
    config(optimizer__learning_rate='1e-2'),
    config(model__dropout='0.3'),
    config(train__duration='4 steps'),
    config(train__eval_every='2 steps'),
    config(optimizer__weight_decay='0.5'),
  ]
  other = [
    config(model__dim='12'),
    config(model__dropout='0.0'),
    config(optimizer__beta1='0.8'),
    config(train__batch_size='8'),
  ]
  assert groups_of([*same, *other], lambda c: c) == [same, *([c] for c in other)]
  buckets = [config(data__buckets='(8, 16)', seed=seed) for seed in '0101']
  assert groups_of(buckets, lambda c: c) == [buckets[::2], buckets[1::2]]
  numbers = numbers_of(
    same[:4],
    [lambda step: 0.1 * step, lambda step: 0.5, lambda step: 1.0, lambda step: 1.0],
    [3, 2, 3, 3],
  )
  assert set(numbers) == {'model.dropout', 'rates'} and numbers[
    'model.dropout'
  ].tolist() == pytest.approx([0.1, 0.1, 0.1, 0.3])
  assert numbers['rates'].tolist() == [pytest.approx([0, 0.1, 0.2]), [0.5] * 3, [1] * 3, [1] * 3]


def test_the_arrays_of_slurm_are_submitted_and_waited_for(make, monkeypatch, tmp_path):
  """By submitit's own executor of local processes, which takes the same calls."""
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
