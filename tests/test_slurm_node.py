"""A Slurm of one node, started here: tasks of a submitted job train as one process does, and a sweep sends its trials. Skipped where Slurm is not installed.

On Debian: apt-get install --no-install-recommends slurm-wlm munge; the test starts its own daemons, for which it must be root.
"""

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
from test_cli import done
from test_parallel import command, curve

PROGRAMS = ('munged', 'slurmctld', 'slurmd', 'sbatch', 'srun')
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


@pytest.fixture
def cluster(tmp_path, monkeypatch):
  """Daemons of their own, and SLURM_CONF that names them."""
  missing = [name for name in PROGRAMS if not shutil.which(name, path=f'{os.environ["PATH"]}:/usr/sbin')]
  if missing or os.geteuid():
    pytest.skip(f'Slurm: {", ".join(missing)} not installed' if missing else 'Slurm: its daemons need root')
  (tmp_path / 'state').mkdir()
  (tmp_path / 'spool').mkdir()
  path = tmp_path / 'slurm.conf'
  path.write_text(CONFIG.format(host=socket.gethostname().split('.')[0], folder=tmp_path, cpus=os.cpu_count()))
  monkeypatch.setenv('SLURM_CONF', str(path))
  monkeypatch.setenv('PATH', f'{os.environ["PATH"]}:/usr/sbin')
  if not pathlib.Path('/run/munge/munge.socket.2').exists():
    for folder in ('/run/munge', '/var/log/munge'):
      pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
      shutil.chown(folder, 'munge', 'munge')
    subprocess.run(['runuser', '-u', 'munge', '--', '/usr/sbin/munged'], check=True)
  daemons = [subprocess.Popen([name, '-D', '-f', path], stdout=open(tmp_path / f'{name}.log', 'w'), stderr=subprocess.STDOUT) for name in ('slurmctld', 'slurmd')]  # noqa: SIM115
  yield tmp_path
  for daemon in daemons:
    daemon.terminate()
    daemon.wait(30)


def test_a_submitted_job_trains_as_one_process(cluster):
  data, run = cluster / 'data', cluster / 'run'
  done(*command(cluster / 'one', data), '--config.parallel.strategy=jit')
  environment = os.environ | {
    'SLURM_OPTIONS': '--ntasks-per-node=2', 'XLA_FLAGS': '--xla_force_host_platform_device_count=2', 'PYTHONPATH': str(ROOT),
  }  # fmt: skip
  submit = [sys.executable, '-m', 'mmlm.slurm', *command(run, data), '--config.parallel.strategy=mesh', '--config.parallel.mesh=data=-1,fsdp=2']
  out = subprocess.run(submit, cwd=ROOT, env=environment, capture_output=True, text=True)
  assert out.returncode == 0 and 'Submitted batch job' in out.stdout, out
  until = time.monotonic() + 200
  while subprocess.run(['squeue', '-h'], capture_output=True, text=True).stdout.strip() and time.monotonic() < until:
    time.sleep(1)
  said = ''.join(path.read_text() for path in cluster.glob('run-*.log'))
  assert said.count('step      6/6') == 1, said
  expected, found = curve(cluster / 'one'), curve(run)
  assert [row[:2] for row in found] == [row[:2] for row in expected]
  np.testing.assert_allclose([row[2] for row in found], [row[2] for row in expected], atol=1e-5)


@pytest.mark.timeout(600)
def test_a_sweep_sends_its_trials_as_an_array(cluster):
  (cluster / 'space.py').write_text(SPACE.replace("choices('optimizer.learning_rate', 1e-3, 2e-3, 3e-3), ", ''))
  flags = ['--config.train.duration=2 steps', '--config.train.eval_every=2 steps', f'--config.data.dir={cluster / "data"}', '--config.parallel.strategy=jit']
  sweep = ['sweep', SPEC, '--space', cluster / 'space.py', '--workdir', cluster / 'sweep', '--executor=slurm', '--slurm=cpus_per_task=1', *flags]
  said = done(*sweep)
  results = json.loads((cluster / 'sweep' / 'results.json').read_text())
  assert [(row['state'], row['runs'][0]['step']) for row in results] == [('complete', 2)] * 2, said
  logs = [path.read_text() for path in (cluster / 'sweep' / 'jobs').glob('*_log.out')]
  assert len(logs) == 2 and all('2/2 100 %' in log for log in logs)
