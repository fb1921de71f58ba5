"""Meshes, the costs of programs, plans, several processes, and jobs of Slurm."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT
from jax.sharding import PartitionSpec as P
from parity_of_devices import compared
from program import cli, done, refused

from mmlm.cli import slurm
from mmlm.data.batching import Batch, part_of
from mmlm.data.pipeline import Loader, Table
from mmlm.parallel.compiled import cost_of, flops_of, format_number, peak_flops
from mmlm.parallel.programs import collectives
from mmlm.parallel.rules import bytes_per_device, parameter_specs, shardings
from mmlm.parallel.strategies import Sharded, sizes_of
from mmlm.sweeps.slurm_jobs import batch_script
from mmlm.training.step import TrainState
from mmlm.utils.errors import UserError

SMALL = 'configs/sentiment/cnn_mr.py:smoke'


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  return tmp_path_factory.mktemp('data')


# The same numbers


EVERY_AXIS = 'data=2,fsdp=2,tensor=2'


@pytest.mark.timeout(600)  # compiles for eight devices
@pytest.mark.parametrize(
  'spec, ways',
  [
    ('configs/translation/numerals.py', ('jit', 'pmap', 'data=8', 'data=2,fsdp=4', 'tensor=2')),
    ('configs/captioning/unicode_pictures.py', ('jit', EVERY_AXIS)),
    ('configs/sentiment/generated.py:modalities=text+image', ('jit', EVERY_AXIS)),
    ('configs/speech/keypad_tones.py', ('jit', EVERY_AXIS)),
  ],
  ids=['translation', 'captioning', 'sentiment', 'speech'],
)
def test_losses_and_answers_are_those_of_one_device(data, tmp_path, spec, ways):
  """All strategies with all tasks: parity_of_devices.py. Compilation takes most of the time."""
  found = compared(
    spec, tmp_path, {'data.dir': str(data)}, 4, ways, ('pmap', 'tensor=2', EVERY_AXIS)
  )
  found.pop('losses')
  for way, (loss, score, _) in found.items():
    assert loss < 1e-5 and score < 1e-5, way
  if 'data=2,fsdp=4' in found:  # vectors and what 4 does not divide stay whole
    assert (
      found['data=2,fsdp=4'][2] < 0.4 * found['jit'][2] and found['data=8'][2] == found['jit'][2]
    )


# Rules


def shapes(**dimensions):
  return {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in dimensions.items()}


PARAMS = {
  'block': {
    'query': shapes(kernel=(8, 4, 6), bias=(4, 6)),
    'out': shapes(kernel=(4, 6, 8)),
    'up': shapes(kernel=(8, 32), bias=(32,)),
  },
  'tokens': shapes(table=(10, 8)),
  'odd': shapes(table=(9, 7)),
  'blocks': {'query': shapes(kernel=(3, 8, 4, 6))},
  'norm': shapes(scale=(8,)),
  'recurrent': {'key': shapes(kernel=(8, 4))},
}


def test_where_the_parameters_of_a_transformer_lie():
  mesh = Sharded('data=1,fsdp=4,tensor=2').mesh
  found = {}
  for name, (spec, _) in parameter_specs(mesh, ('transformer',), PARAMS).items():
    found[name] = spec
  assert found == {
    'block/query/kernel': P('fsdp', 'tensor', None),
    'block/query/bias': P('tensor', None),
    'block/out/kernel': P('tensor', None, 'fsdp'),
    'block/up/kernel': P('fsdp', 'tensor'),
    'block/up/bias': P('tensor'),
    'tokens/table': P('tensor', 'fsdp'),
    'odd/table': P(None, None),
    'blocks/query/kernel': P(None, 'fsdp', 'tensor', None),
    'norm/scale': P(None),
    'recurrent/key/kernel': P(
      'fsdp', None
    ),  # no heads: the rule for those of attention is not for it
  }
  alone = {}
  for name, (spec, _) in parameter_specs(Sharded('fsdp=8').mesh, ('transformer',), PARAMS).items():
    alone[name] = spec
  assert alone['block/up/kernel'] == P(None, 'fsdp') and alone['block/query/kernel'] == P(
    'fsdp', None, None
  )  # tensor=1 takes no place
  rules = (('tokens/.*', ('whole',)), ('block/up/kernel', ('tensor', 'fsdp')), 'fsdp')
  found = {name: spec for name, (spec, _) in parameter_specs(mesh, rules, PARAMS).items()}
  assert (
    found['tokens/table'] == P()
    and found['block/up/kernel'] == P('tensor', 'fsdp')
    and found['block/query/kernel'] == P('fsdp', None, None)
  )


@pytest.mark.parametrize(
  'rules, says',
  [
    ((('block/.*', ()),), r'no rule covers .*tokens/table|no rule covers .*norm/scale'),
    ((('blok/.*', ()), 'fsdp'), "the rule 'blok/.*' covers no parameter"),
    (
      (('odd/table', ('tensor', '')), 'fsdp'),
      r'odd/table has the dimensions \(9, 7\): tensor=2 does not divide 9',
    ),
    (
      (('odd/table', ('', '', 'fsdp')), 'fsdp'),
      r'for odd/table, which has the dimensions \(9, 7\)',
    ),
    ((('odd/table', ('model', '')), 'fsdp'), 'is no rule'),
    ((('odd/table', 'fsdp'),), 'is no rule'),
    (('transfomer',), "Nearest: 'transformer'"),
  ],
)
def test_rules_that_are_wrong(rules, says):
  with pytest.raises(UserError, match=says):
    parameter_specs(Sharded('fsdp=4,tensor=2').mesh, rules, PARAMS)


def test_what_follows_the_parameters_lies_as_they_do():
  moments = {
    'mu': PARAMS,
    'nu': PARAMS,
    'rows': {'tokens': shapes(table=(10,))},
    'count': jax.ShapeDtypeStruct((), jnp.int32),
  }
  state = TrainState(
    jax.ShapeDtypeStruct((), jnp.int32),
    PARAMS,
    ({}, moments),
    PARAMS,
    jax.ShapeDtypeStruct((2,), jnp.uint32),
  )
  mesh = Sharded('fsdp=4,tensor=2').mesh
  placed = shardings(mesh, ('transformer',), state)
  assert placed.ema == placed.params == placed.opt_state[1]['mu'] == placed.opt_state[1]['nu']
  assert (
    placed.opt_state[1]['rows']['tokens']['table'].spec
    == placed.step.spec
    == placed.rng.spec
    == P()
  )


def test_memory_falls_as_the_devices_grow():
  params = {'table': jax.ShapeDtypeStruct((64, 128), jnp.float32)}
  held = []
  for n in (1, 2, 4, 8):
    held.append(
      bytes_per_device(params, Sharded(f'fsdp={n}', devices=jax.devices()[:n]).shardings(params))
    )
  assert held == [64 * 128 * 4 // n for n in (1, 2, 4, 8)]


def test_sizes_of_meshes():
  assert sizes_of('', 1) == (1, 1, 1) and sizes_of('data=-1', 8) == (8, 1, 1)
  assert sizes_of('fsdp=4, data=-1', 8) == (2, 4, 1) and sizes_of('tensor=2,fsdp=4', 8) == (1, 4, 2)


# What a program costs


def test_products_are_counted_as_often_as_loops_run():
  x = jnp.ones((4, 8))
  kernel = jnp.ones((8, 8))

  def scanned(x, k):
    return jax.lax.scan(lambda c, _: (jnp.tanh(c @ k), None), x, None, length=10)[0]

  assert flops_of(jax.make_jaxpr(jax.jit(scanned))(x, kernel).jaxpr) == 10 * 2 * 4 * 8 * 8
  image = jnp.ones((2, 6, 6, 3))
  filters = jnp.ones((3, 3, 3, 5))

  def convolved(x, k):
    return jax.lax.conv_general_dilated(
      x, k, (1, 1), 'VALID', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )

  assert flops_of(jax.make_jaxpr(convolved)(image, filters).jaxpr) == 2 * (2 * 4 * 4 * 5) * (
    3 * 3 * 3
  )
  cost = cost_of(jax.jit(lambda x: x @ kernel, donate_argnums=0).lower(x).compile())
  assert (cost.arguments, cost.outputs, cost.donated) == (
    4 * 8 * 4,
    4 * 8 * 4,
    4 * 8 * 4,
  ) and cost.xla_flops >= 2 * 4 * 8 * 8


def test_what_is_sent_is_counted_as_often_as_loops_run():
  parallel = Sharded('data=8')

  def total(x):  # [16, 4] on eight devices
    def step(carry, _):
      return (carry + jax.lax.psum(x * carry, 'data'), None)

    return jax.lax.scan(step, jnp.zeros((2, 4)), None, length=5)[0]

  body = jax.shard_map(
    total, mesh=parallel.mesh, in_specs=P('data'), out_specs=P(), check_vma=False
  )
  compiled = (
    jax.jit(body)
    .lower(
      jax.ShapeDtypeStruct(
        (16, 4), jnp.float32, sharding=parallel.shard({'x': np.ones((16, 4))})['x'].sharding
      )
    )
    .compile()
  )
  assert collectives(compiled.as_text()) == {'all-reduce': (5, 5 * 2 * 4 * 4)}


def test_peaks_are_of_known_devices_alone():
  def kind(name, platform='gpu'):
    return type('Device', (), {'platform': platform, 'device_kind': name})()

  assert peak_flops() is None  # a CPU
  assert (
    peak_flops(kind('NVIDIA H100 80GB HBM3')) == 989e12
    and peak_flops(kind('NVIDIA H100 PCIe')) == 756e12
  )
  assert (
    peak_flops(kind('NVIDIA L4')) == 121e12
    and peak_flops(kind('NVIDIA L40S')) == 362e12
    and peak_flops(kind('NVIDIA L400')) is None
  )
  assert (
    peak_flops(kind('TPU v5 lite', 'tpu')) == 197e12
    and peak_flops(kind('TPU v5p', 'tpu')) == 459e12
  )
  assert (format_number(512), format_number(1536), format_number(2.5e9, 1000)) == (
    '512 ',
    '1.5 ki',
    '2.5 G',
  )


def test_a_plan_says_what_fits(data):
  argv = ['plan', SMALL, '--devices=8', '--mesh=data=2,fsdp=4', f'--config.data.dir={data}']
  said = done(*argv, '--memory=1GB')
  assert '8 devices, mesh data=2, fsdp=4, tensor=1' in said and 'It fits into 1GB a device' in said
  assert (
    re.search(r'collectives of a step, bytes on a device: all-reduce \d+ times', said)
    and 'FLOP in matrix products' in said
  )
  code, said, _ = cli(*argv, '--memory=1kB')
  assert code == 1 and 'does NOT fit into 1kB' in said
  assert '--memory=' in refused(*argv, '--memory=much') and 'is for 3 devices' in refused(
    'plan', SMALL, '--mesh=data=3'
  )


# Several processes


def test_parts_of_a_batch_are_the_batch():
  source = [{'id': str(i), 'audio': np.full((1 + i % 3, 2), i, np.float32)} for i in range(7)]
  table = Table(
    [e['id'] for e in source], np.arange(7), [[]] * 7, [[]] * 7, [[0.5 * i] for i in range(7)]
  ).with_rows({'audio': np.arange(7) % 3 + 1})

  def noise(example, rng):
    return example | {'audio': example['audio'] + rng.normal(size=(1, 2)).astype(np.float32)}

  blank = {'audio': np.zeros((1, 2), np.float32)}
  for batch in (
    Batch(np.array([4, 0, 6, 2, 5]), 3, 8),
    Batch(np.array([3]), 3, 8),
  ):  # of one example, three of four parts have none
    loader = Loader(source, table, ('audio',), [noise], 8, blank=blank)
    whole = loader(2, batch)
    parts = []
    for number in range(4):
      loader = Loader(source, table, ('audio',), [noise], 8, blank=blank, part=(number, 4))
      parts.append(loader(2, batch))
    for name, x in whole.items():
      joined = np.concatenate([part[name] for part in parts])
      np.testing.assert_array_equal(joined, x)
      assert {part[name].dtype for part in parts} == {x.dtype}
  assert part_of(Batch(np.arange(5), 3, 5), 1, 2)[0].size == 3  # six rows for five


def together(folder, data, processes: int) -> list[str]:
  """Trains as several processes, of two devices each -> what each printed."""
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    address = f'127.0.0.1:{free.getsockname()[1]}'
  environment = os.environ | {
    'XLA_FLAGS': '--xla_force_host_platform_device_count=2',
    'JAX_PLATFORMS': 'cpu',
    'PYTHONPATH': str(ROOT),
  }
  argv = [
    sys.executable,
    '-m',
    'mmlm',
    *command(folder, data),
    '--config.parallel.strategy=mesh',
    '--config.parallel.mesh=data=-1,fsdp=2',
    f'--coordinator={address}',
    f'--processes={processes}',
  ]
  running = []
  for i in range(processes):
    running.append(
      subprocess.Popen(
        [*argv, f'--process={i}'],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
      )
    )
  try:
    said = [process.communicate(timeout=200) for process in running]
  finally:
    for process in running:
      process.kill()
  assert [process.returncode for process in running] == [0] * processes, said
  return [out for out, _ in said]


def command(folder, data) -> list[str]:
  return [
    'train',
    SMALL,
    '--workdir',
    str(folder),
    f'--config.data.dir={data}',
    '--config.model.dropout=0.0',
    '--config.optimizer.warmup=2 steps',
    '--config.train.batch_size=12',
    '--config.train.log_every=1 steps',
    '--config.train.keep_latest=2',
  ]


def curve(folder) -> list:
  rows = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
  return [(row['step'], row['kind'], row['loss']) for row in rows]


def test_two_processes_train_as_one(data, tmp_path):
  done(*command(tmp_path / 'one', data), '--config.parallel.strategy=jit')
  first, second = together(tmp_path / 'two', data, 2)
  expected = curve(tmp_path / 'one')
  found = curve(tmp_path / 'two')
  assert [row[:2] for row in found] == [row[:2] for row in expected] and len(found) == 8
  np.testing.assert_allclose([row[2] for row in found], [row[2] for row in expected], atol=1e-5)
  assert 'step      6/6' in first and 'step' not in second
  assert len(list((tmp_path / 'two' / 'tensorboard').iterdir())) == 1
  # What two processes saved in pieces, one reads and goes on with, on any devices.
  shutil.rmtree(tmp_path / 'two' / 'checkpoints' / '6')
  for way in ('jit', 'pmap', 'mesh'):
    shutil.copytree(tmp_path / 'two', tmp_path / way)
    said = done(*command(tmp_path / way, data), f'--config.parallel.strategy={way}')
    assert 'Resumed at step 3 of 6' in said
    np.testing.assert_allclose(
      [row[2] for row in curve(tmp_path / way)], [row[2] for row in expected], atol=1e-5
    )


@pytest.mark.parametrize(
  'flags, says',
  [
    (['--coordinator=here', '--processes=2', '--process=0'], 'expected host:port'),
    (['--coordinator=here:1', '--processes=2', '--process=2'], '--process=2: expected'),
    (['--processes=2'], 'need --coordinator'),
  ],
)
def test_flags_of_processes_that_do_not_go_together(data, tmp_path, flags, says):
  assert says in refused(*command(tmp_path / 'run', data), *flags)


# Slurm


def test_a_job_is_a_file_that_stays_as_it_was_changed(tmp_path, monkeypatch):
  bin = tmp_path / 'bin'
  bin.mkdir()
  monkeypatch.setenv('PATH', str(bin))
  monkeypatch.setenv('SLURM_OPTIONS', '--nodes=2 --time=60')
  path = tmp_path / 'run.sbatch'
  argv = ['mmlm', 'train', SMALL, '--workdir', str(tmp_path / 'run'), '--config.name=a b']
  with pytest.raises(UserError, match=f'no sbatch on this machine. Submit {path}'):
    slurm.submit(argv)
  text = path.read_text()
  assert (
    '#SBATCH --nodes=2\n#SBATCH --time=60\n' in text
    and '#SBATCH --requeue' in text
    and "'--config.name=a b'" in text
  )
  subprocess.run(['/bin/bash', '-n', path], check=True)
  path.write_text(text.replace('--nodes=2', '--nodes=3'))
  (bin / 'sbatch').write_text(f'#!/bin/sh\necho Submitted $1; /bin/cp $1 {tmp_path}/submitted\n')
  (bin / 'sbatch').chmod(0o755)
  slurm.submit(argv)
  assert '--nodes=3' in (tmp_path / 'submitted').read_text() and not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
  'code, requeued', [(0, False), (2, False), (75, True), (130, True), (143, True)]
)
def test_a_job_that_was_stopped_goes_back_into_the_queue(tmp_path, code, requeued):
  text = batch_script(['train', SMALL], tmp_path / 'run', tmp_path / 'run.sbatch', [])
  for name, body in {'srun': f'exit {code}', 'scontrol': f'echo "$@" > {tmp_path}/asked'}.items():
    (tmp_path / name).write_text(f'#!/bin/sh\n{body}\n')
    (tmp_path / name).chmod(0o755)
  ended = subprocess.run(
    ['bash', '-c', text], env={'PATH': f'{tmp_path}:{os.environ["PATH"]}', 'SLURM_JOB_ID': '7'}
  )
  assert ended.returncode == code and (tmp_path / 'asked').exists() == requeued
  assert not requeued or (tmp_path / 'asked').read_text() == 'requeue 7\n'


def test_what_cannot_be_submitted():
  with pytest.raises(UserError, match='only train can be submitted'):
    slurm.submit(['mmlm', 'evaluate', 'runs/x'])
  with pytest.raises(UserError, match="'2' is no option"):
    batch_script(['train'], ROOT, ROOT, ['--nodes', '2'])
