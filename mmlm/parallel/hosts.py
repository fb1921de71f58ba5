"""Several processes, on one host or many: how they connect, and which of them writes.

Every process runs the same command and loads its part of the same batches. Process 0 alone prints
and writes the run folder; checkpoints are written by all.
"""

import contextlib
import importlib.util
import os
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

from mmlm.utils.errors import UserError


def join(
  coordinator: str = '',
  processes: int = 0,
  process: int = -1,
) -> None:
  """Connects this process with the others, if there are any; call it before any computation.

  Args:
    coordinator: 'host:port' where process 0 listens; '' = from Slurm (`srun` with several tasks) or
      Cloud TPU, or a single process.
    processes: how many there are, with a coordinator.
    process: the number of this one, from 0, with a coordinator.

  Raises:
    UserError: flags that do not go together, or the other processes cannot be reached.
  """
  if coordinator:
    if ':' not in coordinator or not 0 <= process < processes:
      raise UserError(
        f'--coordinator={coordinator} --processes={processes} --process={process}: expected '
        'host:port, how many processes there are, and the number of this one, from 0.'
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
  elif _on_cloud_tpu():
    _initialize('Cloud TPU')
  if not writes():
    sys.stdout = open(os.devnull, 'w')  # noqa: SIM115 open as long as the process lives


def _on_cloud_tpu() -> bool:
  if importlib.util.find_spec('libtpu') is None:
    return False
  return pathlib.Path('/dev/accel0').exists() or pathlib.Path('/dev/vfio/0').exists()


def _initialize(where: str, **options: Any) -> None:
  try:
    jax.distributed.initialize(**options)
  except (RuntimeError, ValueError) as error:
    reason = str(error).splitlines()[0]
    raise UserError(f'{where}: the other processes were not found ({reason}).') from None


def writes() -> bool:
  """Whether this process is the one that writes files."""
  return jax.process_index() == 0


@contextlib.contextmanager
def writer_first() -> Iterator[None]:
  """Runs the block in the writer, then in the other processes, which find its files on the disk.

  All processes leave it together.
  """
  if not writes():
    meet('the writer has finished')
  yield
  if writes():
    meet('the writer has finished')
  meet('the others have finished')


def meet(where: str, hours: float = 24) -> None:
  """Waits until all processes are here.

  They ask the coordinator, since a collective of devices times out after half a minute on a CPU. If
  one dies, the coordinator's heartbeat ends the others.
  """
  multihost.get_barrier_sync_fn()(key=where, timeout_ms=int(hours * 3_600_000))


def preempted(step: int) -> bool:
  """Whether SIGTERM reached any of several processes; all of them agree at the same step."""
  return jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step)
