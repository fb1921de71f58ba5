"""A Slurm of one node, started here: tasks of a submitted job train as one process does, and a sweep sends its trials. Skipped where Slurm is not installed.

On Debian: apt-get install --no-install-recommends slurm-wlm munge; the test starts its own daemons, for which it must be root.
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


def answers(command: list[str]) -> str:
  """What the command prints; empty if it fails or does not end."""
  try:
    return subprocess.run(
      command, capture_output=True, text=True, timeout=10, check=True
    ).stdout.strip()
  except (subprocess.TimeoutExpired, subprocess.CalledProcessError):
    return ''


def until(seconds: float, condition) -> bool:
  """Waits for the condition; whether it came in time."""
  end = time.monotonic() + seconds
  while time.monotonic() < end:
    if condition():
      return True
    time.sleep(0.5)
  return False


def start(stack: contextlib.ExitStack, folder: pathlib.Path, *command):
  """A daemon with a log named after it, ended with the stack."""
  log = stack.enter_context(open(folder / f'{pathlib.Path(command[0]).name}.daemon.log', 'w'))  # noqa: SIM115
  stack.callback(ended, subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT))


def ended(daemon: subprocess.Popen):
  """Ends a daemon, by force if it does not listen."""
  daemon.terminate()
  try:
    daemon.wait(20)
  except subprocess.TimeoutExpired:
    daemon.kill()
    daemon.wait()


def last_words(folder: pathlib.Path) -> str:
  """The last line of each daemon's log."""
  return '; '.join(
    f'{path.name}: {(path.read_text().strip().splitlines() or ["nothing"])[-1]}'
    for path in sorted(folder.glob('*.daemon.log'))
  )


@pytest.fixture
def cluster(tmp_path, monkeypatch):
  """Daemons of their own, and SLURM_CONF that names them."""
  missing = [
    name for name in PROGRAMS if not shutil.which(name, path=f'{os.environ["PATH"]}:/usr/sbin')
  ]
  if missing or os.geteuid():
    pytest.skip(
      f'Slurm: {", ".join(missing)} not installed' if missing else 'Slurm: its daemons need root'
    )
  (tmp_path / 'state').mkdir()
  (tmp_path / 'spool').mkdir()
  path = tmp_path / 'slurm.conf'
  path.write_text(
    CONFIG.format(host=socket.gethostname().split('.')[0], folder=tmp_path, cpus=os.cpu_count())
  )
  monkeypatch.setenv('SLURM_CONF', str(path))
  monkeypatch.setenv('PATH', f'{os.environ["PATH"]}:/usr/sbin')
  with contextlib.ExitStack() as stack:
    if not answers(['munge', '-n']):  # A socket left by a dead daemon answers nothing.
      for folder in ('/run/munge', '/var/log/munge'):
        pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
        shutil.chown(folder, 'munge', 'munge')
      start(
        stack,
        tmp_path,
        'runuser',
        '-u',
        'munge',
        '--',
        '/usr/sbin/munged',
        '--foreground',
        '--force',
      )
      until(10, lambda: answers(['munge', '-n']))
    for name in ('slurmctld', 'slurmd'):
      start(stack, tmp_path, name, '-D', '-f', path)
    if not until(30, lambda: answers(['sinfo', '-h', '-o', '%T']) == 'idle'):
      pytest.skip(f'Slurm: no idle node within half a minute: {last_words(tmp_path)}')
    yield tmp_path
    if not until(
      30, lambda: not answers(['squeue', '-h'])
    ):  # what runs without its daemons would never end
      answers(['scancel', '--full', '--user=root'])
      until(10, lambda: not answers(['squeue', '-h']))


def test_a_submitted_job_trains_as_one_process(cluster):
  data = cluster / 'data'
  run = cluster / 'run'
  done(*command(cluster / 'one', data), '--config.parallel.strategy=jit')
  environment = os.environ | {
    'SLURM_OPTIONS': '--ntasks-per-node=2',
    'XLA_FLAGS': '--xla_force_host_platform_device_count=2',
    'PYTHONPATH': str(ROOT),
  }
  submit = [
    sys.executable,
    '-m',
    'mmlm.cli.slurm',
    *command(run, data),
    '--config.parallel.strategy=mesh',
    '--config.parallel.mesh=data=-1,fsdp=2',
  ]
  out = subprocess.run(submit, cwd=ROOT, env=environment, capture_output=True, text=True)
  assert out.returncode == 0 and 'Submitted batch job' in out.stdout, out
  until(200, lambda: not answers(['squeue', '-h']))
  said = ''.join(path.read_text() for path in cluster.glob('run-*.log'))
  assert said.count('step      6/6') == 1, said
  expected = curve(cluster / 'one')
  found = curve(run)
  assert [row[:2] for row in found] == [row[:2] for row in expected]
  np.testing.assert_allclose([row[2] for row in found], [row[2] for row in expected], atol=1e-5)


@pytest.mark.timeout(600)
def test_a_sweep_sends_its_trials_as_an_array(cluster):
  (cluster / 'space.py').write_text(
    SPACE.replace("choices('optimizer.learning_rate', 1e-3, 2e-3, 3e-3), ", '')
  )
  flags = [
    '--config.train.duration=2 steps',
    '--config.train.eval_every=2 steps',
    f'--config.data.dir={cluster / "data"}',
    '--config.parallel.strategy=jit',
  ]
  sweep = [
    'sweep',
    SPEC,
    '--space',
    cluster / 'space.py',
    '--workdir',
    cluster / 'sweep',
    '--executor=slurm',
    '--slurm=cpus_per_task=1',
    *flags,
  ]
  said = done(*sweep)
  results = json.loads((cluster / 'sweep' / 'results.json').read_text())
  assert [(row['state'], row['runs'][0]['step']) for row in results] == [('complete', 2)] * 2, said
  logs = [path.read_text() for path in (cluster / 'sweep' / 'jobs').glob('*_log.out')]
  assert len(logs) == 2 and all('2/2 100 %' in log for log in logs)
