"""Slurm on one node, started here: a submitted job and the trials of a sweep.

Skipped where Slurm is not installed. On Debian:
apt-get install --no-install-recommends slurm-wlm munge
The test starts its own daemons, for which it must be root.
"""

import contextlib
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT
from killed_sweeps import SPACE, SPEC
from program import done
from test_parallel import command, curve

PROGRAMS = ('munge', 'munged', 'slurmctld', 'slurmd', 'sbatch', 'srun')
CONFIG = """ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def output_of(*command) -> str:
  """Returns the output of a command; '' if it fails or takes more than ten seconds."""
  try:
    process = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
  except (subprocess.TimeoutExpired, subprocess.CalledProcessError):
    return ''
  return process.stdout.strip()


def queue() -> str:
  return output_of('squeue', '-h')


def wait_until(condition, seconds: float) -> bool:
  """Waits for a condition; returns whether it became true in time."""
  end = time.monotonic() + seconds
  while time.monotonic() < end:
    if condition():
      return True
    time.sleep(0.5)
  return False


def start(stack: contextlib.ExitStack, folder: pathlib.Path, *command):
  """Starts a daemon with a log of its name; it ends with the stack."""
  path = folder / f'{pathlib.Path(command[0]).name}.daemon.log'
  log = stack.enter_context(open(path, 'w'))  # noqa: SIM115
  daemon = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
  stack.callback(end, daemon)


def end(daemon: subprocess.Popen):
  """Ends a daemon, by force if it does not react."""
  daemon.terminate()
  try:
    daemon.wait(20)
  except subprocess.TimeoutExpired:
    daemon.kill()
    daemon.wait()


def last_log_lines(folder: pathlib.Path) -> str:
  """Returns the last line of the log of each daemon."""
  lines = []
  for path in sorted(folder.glob('*.daemon.log')):
    log = path.read_text().strip().splitlines() or ['nothing']
    lines.append(f'{path.name}: {log[-1]}')
  return '; '.join(lines)


def skip_without_slurm():
  path = f'{os.environ["PATH"]}:/usr/sbin'
  missing = [name for name in PROGRAMS if not shutil.which(name, path=path)]
  if missing:
    pytest.skip(f'Slurm: {", ".join(missing)} not installed')
  if os.geteuid():
    pytest.skip('Slurm: its daemons need root')


def start_munge(stack: contextlib.ExitStack, folder: pathlib.Path):
  """Starts munged unless one answers; the socket of a dead one does not."""
  if output_of('munge', '-n'):
    return
  for place in ('/run/munge', '/var/log/munge'):
    pathlib.Path(place).mkdir(parents=True, exist_ok=True)
    shutil.chown(place, 'munge', 'munge')
  munged = ['/usr/sbin/munged', '--foreground', '--force']
  start(stack, folder, 'runuser', '-u', 'munge', '--', *munged)
  wait_until(lambda: output_of('munge', '-n'), 10)


@pytest.fixture
def cluster(tmp_path, monkeypatch):
  """A folder with the logs of a running Slurm, which SLURM_CONF names."""
  skip_without_slurm()
  (tmp_path / 'state').mkdir()
  (tmp_path / 'spool').mkdir()
  host = socket.gethostname().split('.')[0]
  config = tmp_path / 'slurm.conf'
  config.write_text(CONFIG.format(host=host, folder=tmp_path, cpus=os.cpu_count()))
  monkeypatch.setenv('SLURM_CONF', str(config))
  monkeypatch.setenv('PATH', f'{os.environ["PATH"]}:/usr/sbin')
  with contextlib.ExitStack() as stack:
    start_munge(stack, tmp_path)
    for name in ('slurmctld', 'slurmd'):
      start(stack, tmp_path, name, '-D', '-f', config)
    if not wait_until(lambda: output_of('sinfo', '-h', '-o', '%T') == 'idle', 30):
      pytest.skip(f'Slurm: no idle node within half a minute: {last_log_lines(tmp_path)}')
    yield tmp_path
    if not wait_until(lambda: not queue(), 30):  # a job without the daemons would never end
      output_of('scancel', '--full', '--user=root')
      wait_until(lambda: not queue(), 10)


def test_a_submitted_job_trains_as_one_process(cluster):
  data = cluster / 'data'
  run = cluster / 'run'
  done(*command(cluster / 'one', data), '--config.parallel.strategy=jit')
  mesh = ['--config.parallel.strategy=mesh', '--config.parallel.mesh=data=-1,fsdp=2']
  environment = os.environ | {
    'SLURM_OPTIONS': '--ntasks-per-node=2',
    'XLA_FLAGS': '--xla_force_host_platform_device_count=2',
    'PYTHONPATH': str(ROOT),
  }
  submit = [sys.executable, '-m', 'mmlm.cli.slurm', *command(run, data), *mesh]
  process = subprocess.run(submit, cwd=ROOT, env=environment, capture_output=True, text=True)
  assert process.returncode == 0, process
  assert 'Submitted batch job' in process.stdout
  wait_until(lambda: not queue(), 200)
  log = ''.join(path.read_text() for path in cluster.glob('run-*.log'))
  assert log.count('step      6/6') == 1, log
  expected = curve(cluster / 'one')
  actual = curve(run)
  assert [point[:2] for point in actual] == [point[:2] for point in expected]
  losses = [point[2] for point in actual]
  np.testing.assert_allclose(losses, [point[2] for point in expected], atol=1e-5)


@pytest.mark.timeout(600)
def test_a_sweep_sends_its_trials_as_an_array(cluster):
  axis = "choices('optimizer.learning_rate', 1e-3, 2e-3, 3e-3), "
  (cluster / 'space.py').write_text(SPACE.replace(axis, ''))
  settings = [
    '--config.train.duration=2 steps',
    '--config.train.eval_every=2 steps',
    f'--config.data.dir={cluster / "data"}',
    '--config.parallel.strategy=jit',
  ]
  sweep = ['sweep', SPEC, '--space', cluster / 'space.py', '--workdir', cluster / 'sweep']
  slurm = ['--executor=slurm', '--slurm=cpus_per_task=1']
  output = done(*sweep, *slurm, *settings)
  results = json.loads((cluster / 'sweep' / 'results.json').read_text())
  states = [(trial['state'], trial['runs'][0]['step']) for trial in results]
  assert states == [('complete', 2)] * 2, output
  logs = [path.read_text() for path in (cluster / 'sweep' / 'jobs').glob('*_log.out')]
  assert len(logs) == 2
  assert all('2/2 100 %' in log for log in logs)
