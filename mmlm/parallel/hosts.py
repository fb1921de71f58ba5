"""Several processes, on one host or on many: how they find each other, and which of them writes.

Every process runs the same command and loads its own rows of the same batches; process 0 alone prints and writes the run folder,
checkpoints are written by all.
"""

import contextlib
import importlib.util
import os
import pathlib
import sys

import jax
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

from mmlm.utils.errors import UserError


def join(coordinator: str = '', processes: int = 0, process: int = -1) -> None:
  """Connects this process with the others, if there are any; before anything is computed.

  Args:
    coordinator: 'host:port' where process 0 listens; '' = found from Slurm (`srun` with several tasks) or Cloud TPU, or alone.
    processes: how many there are; process: the number of this one, from 0. Both go with the coordinator.

  Raises:
    UserError: flags that do not go together, or the others are not found.
  """
  if coordinator:
    if ':' not in coordinator or not 0 <= process < processes:
      raise UserError(
        f'--coordinator={coordinator} --processes={processes} --process={process}: expected host:port, how many processes there are, and the number of this one, from 0.'
      )
    _initialize(
      coordinator, coordinator_address=coordinator, num_processes=processes, process_id=process
    )
  elif processes or process >= 0:
    raise UserError(
      '--processes and --process need --coordinator=host:port, the address of process 0.'
    )
  elif int(os.environ.get('SLURM_STEP_NUM_TASKS', 1)) > 1:
    _initialize(f'Slurm job {os.environ.get("SLURM_JOB_ID")}')
  elif importlib.util.find_spec('libtpu') and (
    pathlib.Path('/dev/accel0').exists() or pathlib.Path('/dev/vfio/0').exists()
  ):
    _initialize('Cloud TPU')
  if not writes():
    sys.stdout = open(os.devnull, 'w')  # noqa: SIM115 it lives as long as the process


def _initialize(where: str, **how):
  try:
    jax.distributed.initialize(**how)
  except (RuntimeError, ValueError) as error:
    raise UserError(
      f'{where}: the other processes were not found ({str(error).splitlines()[0]}).'
    ) from None


def writes() -> bool:
  """Whether this process is the one that writes files."""
  return jax.process_index() == 0


@contextlib.contextmanager
def writer_first():
  """The block is run by the writer, then by the others, who find what it has left on the disk; all leave it together."""
  if not writes():
    meet('the writer is through')
  yield
  if writes():
    meet('the writer is through')
  meet('the others are through')


def meet(where: str, hours: float = 24) -> None:
  """Waits until all processes are here; they ask the coordinator, since a collective of devices gives up after half a minute on a CPU.

  One that has died ends the others before, by the coordinator's heartbeat.
  """
  multihost.get_barrier_sync_fn()(key=where, timeout_ms=int(hours * 3_600_000))


def preempted(step: int) -> bool:
  """Whether SIGTERM reached any of several processes: the same answer in all of them at the same step."""
  return jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step)
