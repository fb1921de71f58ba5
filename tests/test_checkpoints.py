"""The training loop and its checkpoints on a toy: a linear model of tiny pictures, through the real input pipeline."""

import errno
import io
import json
import os
import pathlib
import shutil
import signal
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mmlm import runs
from mmlm.data import batching
from mmlm.data.ops import parse_ops
from mmlm.data.pipeline import Loader, Table, stream
from mmlm.errors import UserError
from mmlm.parallel import Parallel
from mmlm.training import loop
from mmlm.training.checkpoints import Checkpoints, higher_is_better
from mmlm.training.step import StepOptions, TrainState, initial_state

COUNT, BATCH, TOTAL = 20, 8, 10
TIMES = ('seconds', 'examples_per_second')


def png(value):
  file = io.BytesIO()
  Image.fromarray(np.random.default_rng(value).integers(0, 256, (4, 4), np.uint8)).save(file, 'PNG')
  return file.getvalue()


def toy_loss(noise):
  """Squared error of a linear model of the pixels; with `noise`, half of them are dropped at random."""

  def loss(params, batch, rng):
    x = batch['image'].reshape(len(batch['weight']), -1)
    if noise:
      x = x * jax.random.bernoulli(rng, 0.5, x.shape)
    error = x @ params['w'] + params['b'] - batch['target'].sum(1) / 10
    return (error**2 * batch['weight']).sum(), batch['weight'].sum()

  return loss


def one_loss(params):
  return {'loss': float(jnp.square(params['w'] - 1).sum())}


class Toy:
  """A run of the toy in `folder`; every part can be replaced."""

  def __init__(self, folder, strategy='jit', noise=True, workers=0, validate=one_loss, at=lambda number: None, bad=None,
               monitor='loss', keep=(2, 1), patience=0, ema=0.9, total=TOTAL):  # fmt: skip
    self.folder, self.parallel = pathlib.Path(folder), Parallel(strategy)
    self.source = [{'id': f'e{i}', 'image': png(i), 'targets': ('',)} for i in range(COUNT)]
    table = Table([e['id'] for e in self.source], np.arange(COUNT), [[i % 7] for i in range(COUNT)], [[]] * COUNT)
    ops = parse_ops(('decode("L")', 'random_crop(4, 1)', 'normalize("half")'))
    self.loader = Loader(self.source, table, ('image',), ops, BATCH)
    self.plan = batching.TrainPlan(table.lengths, BATCH, (2,), seed=1)
    self.monitor, self.keep, self.workers, self.at, self.bad = monitor, keep, workers, at, bad
    options = StepOptions(optax.adam(0.1), toy_loss(noise), ema_decay=ema)
    self.state = initial_state({'w': jnp.zeros(16), 'b': jnp.zeros(())}, options, seed=3)
    self.parts = loop.Parts(
      options=options, learning_rate=lambda step: 0.1, stream=self.stream, validate=validate,
      ids=lambda number: [table.ids[i] for i in self.plan[number].indices], schedule=loop.Schedule(total, 2, 3, patience),
    )  # fmt: skip

  def stream(self, start, stop):
    return _Watched(stream(self.plan, self.loader, start, stop, self.workers), start, self.at, self.bad)

  def checkpoints(self, writing=True):
    return Checkpoints(self.folder / 'checkpoints', self.monitor, *self.keep, writing=writing)

  def train(self):
    self.folder.mkdir(parents=True, exist_ok=True)
    loop.train(self.parts, self.parallel, self.state, self.checkpoints(), self.folder)
    return self

  def restored(self):
    """The newest state, as host arrays by name."""
    checkpoints = self.checkpoints(writing=False)
    state, meta = checkpoints.restore(jax.eval_shape(lambda: self.state))
    return jax.device_get(state), meta

  def best(self, which='best', average=1):
    params, step = self.checkpoints(writing=False).params(self.state.params, which, average)
    return jax.device_get(params), step

  def steps(self):
    return self.checkpoints(writing=False).steps()

  def metrics(self):
    rows = [json.loads(line) for line in (self.folder / 'metrics.jsonl').read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in TIMES} for row in rows]


class _Watched:
  """Batches of a stream; calls `at(number)` before each, and makes the pictures of batch `bad` infinite."""

  def __init__(self, inner, number, at, bad):
    self.inner, self.number, self.at, self.bad = inner, number, at, bad

  def __enter__(self):
    return self._batches(self.inner.__enter__())

  def _batches(self, batches):
    for number, batch in enumerate(batches, self.number):
      self.at(number)
      yield batch | {'image': np.full_like(batch['image'], np.inf)} if number == self.bad else batch

  def __exit__(self, *error):
    return self.inner.__exit__(*error)


def killed_at(number, how=signal.SIGTERM):
  return lambda n: os.kill(os.getpid(), how) if n == number else None


def equal(left, right):
  return jax.tree.all(jax.tree.map(np.array_equal, left, right))


def close(left, right, tolerance):
  return jax.tree.all(jax.tree.map(lambda a, b: np.allclose(a, b, rtol=tolerance, atol=tolerance), left, right))


def tree(folder):
  return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob('*')) if p.is_file()}


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """A run from start to end, not interrupted."""
  return Toy(tmp_path_factory.mktemp('whole') / 'run').train()


@pytest.fixture
def copy(whole, tmp_path):
  """A copy of that run, to be damaged."""
  shutil.copytree(whole.folder, tmp_path / 'copy')
  return tmp_path / 'copy'


# Resume


@pytest.mark.parametrize('number, how', [(0, signal.SIGTERM), (4, signal.SIGINT), (5, signal.SIGTERM), (9, signal.SIGTERM)])
def test_an_interrupted_run_goes_on_with_the_same_bits(whole, tmp_path, number, how):
  """Before, between and at the steps of logging (2) and of checkpoints (3)."""
  run = Toy(tmp_path, at=killed_at(number, how))
  with pytest.raises(loop.Interrupted, match=f'saved at step {number + 1}'):
    run.train()
  assert run.steps()[-1] == number + 1 and signal.getsignal(how) is not None
  Toy(tmp_path).train()
  (state, meta), (wanted, wanted_meta) = run.restored(), whole.restored()
  assert equal(state, wanted) and meta == wanted_meta
  assert run.metrics() == whole.metrics()


def test_interrupted_at_every_step(whole, tmp_path):
  class Once:
    def __init__(self):
      self.seen = set()

    def __call__(self, number):
      if number not in self.seen:
        self.seen.add(number)
        os.kill(os.getpid(), signal.SIGTERM)

  run, stops = Toy(tmp_path, at=Once()), 0
  for _ in range(TOTAL):
    with pytest.raises(loop.Interrupted):
      run.train()
    stops += 1
  run.train()
  assert stops == TOTAL and equal(run.restored()[0], whole.restored()[0]) and run.metrics() == whole.metrics()


def test_a_loader_that_dies_of_the_same_signal(whole, tmp_path):
  """Ctrl-C reaches all processes of a terminal; whoever waits for one that died of it has nothing new to save."""

  def dies(number):
    if number == 5:
      os.kill(os.getpid(), signal.SIGINT)
      raise RuntimeError('Worker process was terminated unexpectedly')

  with pytest.raises(loop.Interrupted, match='goes on from the last checkpoint'):
    Toy(tmp_path, at=dies).train()
  run = Toy(tmp_path)
  assert run.steps() == [3]
  run.train()
  assert equal(run.restored()[0], whole.restored()[0]) and run.metrics() == whole.metrics()


def test_a_loader_that_dies_of_itself_is_no_interruption(tmp_path):
  def dies(number):
    raise RuntimeError('Worker process was terminated unexpectedly')

  with pytest.raises(RuntimeError, match='Worker process'):
    Toy(tmp_path, at=dies).train()


def test_signals_do_what_they_did_before_once_training_is_over(whole, tmp_path):
  before = signal.getsignal(signal.SIGTERM)
  Toy(tmp_path, total=1).train()
  assert signal.getsignal(signal.SIGTERM) is before


def test_the_number_of_workers_may_change(whole, tmp_path):
  with pytest.raises(loop.Interrupted):
    Toy(tmp_path, at=killed_at(3)).train()
  run = Toy(tmp_path, workers=2).train()
  assert equal(run.restored()[0], whole.restored()[0]) and run.metrics() == whole.metrics()


@pytest.mark.parametrize('first, then', [('jit', 'pmap'), ('pmap', 'jit')])
def test_the_number_of_devices_may_change(tmp_path, first, then):
  """Without dropout, whose random bits belong to a device."""
  assert jax.local_device_count() == 8
  wanted = Toy(tmp_path / 'whole', first, noise=False).train()
  with pytest.raises(loop.Interrupted):
    Toy(tmp_path / 'run', first, noise=False, at=killed_at(4)).train()
  run = Toy(tmp_path / 'run', then, noise=False).train()
  assert close(run.restored()[0], wanted.restored()[0], 1e-5)
  for row, other in zip(run.metrics(), wanted.metrics(), strict=True):
    assert row.pop('kind') == other.pop('kind') and row == pytest.approx(other, rel=1e-5)


def test_a_complete_run_is_left_as_it_is(copy, capsys):
  before = tree(copy)
  Toy(copy).train()
  assert 'The run is complete.' in capsys.readouterr().out
  assert tree(copy) == before


def test_a_longer_schedule_goes_on(copy, tmp_path):
  run, wanted = Toy(copy, total=13).train(), Toy(tmp_path / 'long', total=13).train()
  assert run.steps()[-1] == 13 and equal(run.restored()[0], wanted.restored()[0])


# Policy


def fill(folder, scores, **options):
  """Checkpoints whose parameters are the step, saved with the given scores."""
  checkpoints = Checkpoints(folder, **options)
  for step, score in enumerate(scores, 1):
    params = {'w': jnp.full(3, float(step))}
    checkpoints.save(TrainState(jnp.array(step), params, (), (), jnp.zeros(2, jnp.uint32)), {}, {options.get('monitor', 'loss'): score})
  checkpoints.close()
  return Checkpoints(folder, **options, writing=False)


def value(checkpoints, *args):
  params, step = checkpoints.params({'w': jnp.zeros(3)}, *args)
  return float(params['w'][0]), step


@pytest.mark.parametrize('monitor, scores, latest, best, left, named', [
  ('loss', [5, 1, 3, 4], 1, 1, [2, 4], 2),
  ('loss', [5, 1, 3, 4], 2, 1, [2, 3, 4], 2),
  ('loss', [5, 1, 3, 4], 1, 2, [2, 3, 4], 2),
  ('bleu_4', [5, 1, 3, 4], 1, 1, [1, 4], 1),
  ('dev/loss', [5, 1, 3, 4], 1, 1, [2, 4], 2),
  ('dev/bleu_4', [5, 1, 3, 4], 1, 1, [1, 4], 1),
  ('loss', [4, 3, 2, 1], 1, 1, [4], 4),
  ('loss', [2, np.nan, 3], 1, 1, [1, 3], 1),
  ('bleu_4', [1, np.nan, np.inf], 1, 1, [1, 3], 1),
])  # fmt: skip
def test_the_newest_and_the_best_stay(tmp_path, monitor, scores, latest, best, left, named):
  checkpoints = fill(tmp_path, scores, monitor=monitor, keep_latest=latest, keep_best=best)
  assert checkpoints.steps() == left
  assert value(checkpoints) == (named, named)
  assert value(checkpoints, 'latest') == (len(scores), len(scores))


def test_equal_scores(tmp_path):
  checkpoints = fill(tmp_path, [1, 1, 3, 1, 2], keep_latest=1)
  best, step = value(checkpoints)
  assert best == step and step in (1, 2, 4) and checkpoints.steps() == [step, 5]


def test_which_parameters_are_evaluated(tmp_path):
  checkpoints = fill(tmp_path, [5, 1, 3, 4], keep_latest=4)
  assert value(checkpoints, 'best') == (2, 2) and value(checkpoints, 'latest') == (4, 4)
  assert value(checkpoints, 3) == value(checkpoints, '3') == (3, 3)
  assert value(checkpoints, 'latest', 3) == (3, 4)  # the mean of 2, 3 and 4
  assert value(checkpoints, 'best', 2) == (1.5, 2)
  for which, average, says in (('newest', 1, "'newest': not in .*which holds \\[1, 2, 3, 4\\]"), (7, 1, '7'), ('', 1, "''"),
                               ('latest', 5, 'average=5.*train.keep_latest')):  # fmt: skip
    with pytest.raises(UserError, match=says):
      value(checkpoints, which, average)


def test_the_moving_average_is_evaluated_where_there_is_one(whole, tmp_path):
  state, _ = whole.restored()
  assert not equal(state.ema, state.params)
  assert equal(whole.best('latest')[0], state.ema)
  run = Toy(tmp_path, ema=0.0, total=2).train()
  assert equal(run.best('latest')[0], run.restored()[0].params)


def test_no_checkpoint(tmp_path):
  for folder in (tmp_path / 'nowhere', tmp_path):
    with pytest.raises(UserError, match='no checkpoint. Train first'):
      Checkpoints(folder, writing=False).params({'w': jnp.zeros(3)})
  assert not (tmp_path / 'nowhere').exists()
  assert Checkpoints(tmp_path).restore(None) is None


def test_higher_is_better():
  assert [higher_is_better(n) for n in ('loss', 'perplexity', 'dev/loss', 'ter', 'bleu_4', 'a/b/cider_d')] == [0, 0, 0, 0, 1, 1]


def scripted(*scores):
  left = iter(scores)
  return lambda params: {'loss': next(left)}


def test_patience_stops_and_stays_stopped(tmp_path, capsys):
  run = Toy(tmp_path, validate=scripted(3, 2, 2.1, 2.5, 1), patience=2, total=30).train()
  assert 'No better loss in 2 validations' in capsys.readouterr().out
  assert run.steps()[-1] == 12 and run.best()[1] == 6
  before = tree(tmp_path)
  Toy(tmp_path, validate=scripted(), patience=2, total=30).train()
  assert 'The run is complete.' in capsys.readouterr().out and tree(tmp_path) == before


def test_patience_counts_over_an_interruption(tmp_path):
  with pytest.raises(loop.Interrupted):
    Toy(tmp_path, validate=scripted(3, 2, 2.1), patience=2, total=30, at=killed_at(9)).train()
  assert Toy(tmp_path, validate=scripted(2.5, 1), patience=2, total=30).train().steps()[-1] == 12


def test_a_score_that_is_no_number_is_never_the_best(tmp_path):
  run = Toy(tmp_path, validate=scripted(np.nan, 2, 1, np.nan)).train()
  assert run.best()[1] == 9 and run.restored()[1]['best'] == 1


def test_a_monitor_that_is_no_score(tmp_path):
  with pytest.raises(UserError, match=r"train.monitor='bleu_4' is not among the validation scores \['loss'\]"):
    Toy(tmp_path, monitor='bleu_4').train()


# Logs


def scalars(folder):
  found = EventAccumulator(str(folder / 'tensorboard'), size_guidance={'scalars': 0}).Reload()
  return {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()['scalars']}


def test_tensorboard_has_what_metrics_have(whole):
  wanted = {}
  for line in (whole.folder / 'metrics.jsonl').read_text().splitlines():
    row = json.loads(line)
    for name in row.keys() - {'step', 'kind'}:
      wanted.setdefault(f'{row["kind"]}/{name}', []).append((row['step'], pytest.approx(row[name], rel=1e-6)))
  assert {'train/loss', 'train/gradient_norm', 'train/learning_rate', 'train/examples_per_second', 'valid/loss'} <= wanted.keys()
  assert scalars(whole.folder) == wanted
  assert [step for step, _ in wanted['train/loss']] == [2, 4, 6, 8, 10]
  assert [step for step, _ in wanted['valid/loss']] == [3, 6, 9, 10]


@pytest.mark.parametrize('steps, saved', [(2, 0), (5, 3)])
def test_what_a_killed_run_logged_after_its_checkpoint_stands_once(whole, tmp_path, monkeypatch, steps, saved):
  """Killed after `steps` steps: its last lines are written again when the steps are done again."""

  def kill(number):
    if number == steps:
      raise KeyboardInterrupt

  clock = iter(range(1_000_000_000, 2_000_000_000))  # event files are named by the second
  event_time = types.SimpleNamespace(time=lambda: next(clock))
  monkeypatch.setattr('tensorboardX.event_file_writer.time', event_time)
  with pytest.raises(KeyboardInterrupt):
    Toy(tmp_path, at=kill).train()
  run = Toy(tmp_path)
  assert run.steps() == ([saved] if saved else [])
  with open(tmp_path / 'metrics.jsonl', 'a') as file:
    file.write('{"step": 3, "kind": "tr')  # killed in the middle of a line
  run.train()
  assert run.metrics() == whole.metrics() and equal(run.restored()[0], whole.restored()[0])
  names = ('train/loss', 'valid/loss')
  assert [scalars(tmp_path)[n] for n in names] == [scalars(whole.folder)[n] for n in names]


# Damage


def parts_of(folder, step, item='params'):
  return sorted((p for p in (folder / 'checkpoints' / str(step) / item).rglob('d/*') if p.is_file()), key=lambda p: p.stat().st_size)


def truncate(folder, step):
  for item in ('params', 'ema', 'rest'):
    for file in parts_of(folder, step, item):
      os.truncate(file, file.stat().st_size // 2)


def empty(folder, step):
  for file in parts_of(folder, step):
    file.write_bytes(b'')


def lose_metadata(folder, step):
  (folder / 'checkpoints' / str(step) / 'rest' / '_METADATA').unlink()


def lose_item(folder, step):
  shutil.rmtree(folder / 'checkpoints' / str(step) / 'ema')


def lose_meta(folder, step):
  (folder / 'checkpoints' / str(step) / 'meta' / 'metadata').write_text('{')


@pytest.mark.parametrize('damage', [truncate, empty, lose_metadata, lose_item, lose_meta])
def test_a_damaged_checkpoint_is_said_and_the_one_before_taken(whole, copy, damage, capsys):
  assert whole.steps() == [9, 10]
  damage(copy, 10)
  run = Toy(copy).train()
  said = capsys.readouterr().out
  assert 'Checkpoint 10 cannot be read' in said and 'moved to damaged-10' in said and 'Resumed at step 9 of 10' in said
  assert equal(run.restored()[0], whole.restored()[0]) and run.metrics() == whole.metrics()
  assert (copy / 'checkpoints' / 'damaged-10').is_dir() and run.steps() == [9, 10]


def test_a_step_may_be_damaged_twice(copy):
  for name in ('damaged-10', 'damaged-10-again'):
    truncate(copy, 10)
    run = Toy(copy).train()
    assert (copy / 'checkpoints' / name).is_dir() and run.steps() == [9, 10]


def test_when_none_can_be_read_nothing_is_moved(copy):
  for step in (9, 10):
    truncate(copy, step)
  before = tree(copy)
  with pytest.raises(UserError, match='(?s)no checkpoint can be read.*10: .*9: .*another --workdir'):
    Toy(copy).train()
  assert tree(copy) == before


def test_evaluation_says_which_steps_are_good(tmp_path):
  fill(tmp_path / 'checkpoints', [1, 2, 3, 4], keep_latest=4)
  for step in (2, 4):
    truncate(tmp_path, step)
  checkpoints = Checkpoints(tmp_path / 'checkpoints', writing=False)
  with pytest.raises(UserError, match=r'checkpoints/4 cannot be read .*Steps that can: \[1, 3\]; choose one'):
    value(checkpoints, 'latest')
  assert value(checkpoints, 3) == (3, 3)
  for step in (1, 3):
    truncate(tmp_path, step)
  with pytest.raises(UserError, match='Steps that can: none'):
    value(checkpoints, 4)


def test_what_a_killed_writer_left_is_cleared_by_training_only(copy):
  """Evaluation may look at a run while its training writes."""
  left = copy / 'checkpoints' / '12.orbax-checkpoint-tmp'
  shutil.copytree(copy / 'checkpoints' / '10', left)
  run = Toy(copy, total=12)
  assert run.steps() == [9, 10] and run.best('latest')[1] == 10 and left.is_dir()
  assert run.train().steps()[-1] == 12 and not left.exists()


# A full disk


def full(*args, **kwargs):
  raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_in_words(*args, **kwargs):
  raise ValueError('RESOURCE_EXHAUSTED: Error writing local file: No space left on device')


def full_in_the_background(self, wait=ocp.CheckpointManager.wait_until_finished):
  wait(self)
  full()


@pytest.mark.parametrize('method, error', [
  ('save', full), ('save', full_in_words), ('wait_until_finished', full_in_the_background),
])  # fmt: skip
def test_no_space_for_a_checkpoint(whole, tmp_path, monkeypatch, method, error):
  def full_disk(number):
    if number == 7:
      monkeypatch.setattr(ocp.CheckpointManager, method, error)

  run = Toy(tmp_path, at=full_disk)
  with pytest.raises(UserError, match='no space left on the disk.*older ones are whole.*start the same command again'):
    run.train()
  monkeypatch.undo()
  assert 3 in run.steps()
  run = Toy(tmp_path).train()
  assert equal(run.restored()[0], whole.restored()[0]) and run.metrics() == whole.metrics()


def test_other_errors_of_a_checkpoint_are_not_a_full_disk(tmp_path, monkeypatch):
  def broken(*args, **kwargs):
    raise ValueError('a bug')

  monkeypatch.setattr(ocp.CheckpointManager, 'save', broken)
  with pytest.raises(ValueError, match='a bug'):
    Toy(tmp_path).train()


@pytest.mark.parametrize('call', ['fsync', 'replace'])
def test_no_space_for_a_file_leaves_the_old_one(tmp_path, monkeypatch, call):
  path = tmp_path / 'scores.json'
  runs.write_json(path, {'old': 1})
  monkeypatch.setattr(os, call, full)
  with pytest.raises(OSError, match='No space left'):
    runs.write_json(path, {'new': 2})
  monkeypatch.undo()
  assert runs.read_json(path) == {'old': 1} and [p.name for p in tmp_path.iterdir()] == ['scores.json']


# A loss that is no number


@pytest.mark.parametrize('bad', [4, 5, 9])
def test_a_loss_that_is_no_number_stops_and_names_the_batch(whole, tmp_path, bad):
  """Before, at and after the steps of checkpoints: what is saved is good."""
  run = Toy(tmp_path, bad=bad)
  saved = bad // 3 * 3
  with pytest.raises(UserError, match=f'step {bad + 1}: the loss is (nan|inf).*checkpoint is kept .{saved}.') as caught:
    run.train()
  ids = {run.source[i]['id'] for i in run.plan[bad].indices}
  assert set(str(caught.value).rpartition('batch: ')[2].rstrip('.').split(', ')) == ids and len(ids) >= 4
  assert run.steps()[-1] == saved
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(run.restored()[0]))
  assert equal(Toy(tmp_path).train().restored()[0], whole.restored()[0])
