"""The metrics of a training run: metrics.jsonl and TensorBoard's event files."""

import contextlib
import json
import os
import pathlib
import time

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import (
  Event,  # pyright: ignore[reportAttributeAccessIssue]
  SessionLog,  # pyright: ignore[reportAttributeAccessIssue]
)
from tensorboardX.summary import scalar

from mmlm.utils import run_dir as runs
from mmlm.utils.errors import disk_errors

DISK_FULL = 'the newest lines of metrics.jsonl were not written, checkpoints are whole'


class MetricWriter:
  """Writes metrics.jsonl and event files.

  On resume the lines after the restored step are removed, so that none is written twice.

  Args:
    step: the restored step.
    writing: False in all processes but one: they write nothing.

  Raises:
    UserError: a full disk.
  """

  def __init__(
    self,
    folder: pathlib.Path,
    step: int,
    writing: bool = True,
  ):
    self._writing = writing
    self._folder = folder
    if not writing:
      return
    with disk_errors(folder, DISK_FULL):
      self._remove_lines_after(step)
      (folder / 'tensorboard').mkdir(exist_ok=True)
      # tensorboardX's SummaryWriter has a thread that dies of a full disk, for which training
      # would wait.
      self._events = EventsWriter(str(folder / 'tensorboard' / 'events'), f'.{os.getpid()}')
      # A session start hides the events of later steps.
      self._events.write_event(Event(step=step + 1, file_version='brain.Event:2'))
      session_start = SessionLog(status=SessionLog.START)
      self._events.write_event(Event(step=step + 1, session_log=session_start))

  @property
  def path(self) -> pathlib.Path:
    """metrics.jsonl."""
    return self._folder / 'metrics.jsonl'

  def _remove_lines_after(self, step: int) -> None:
    lines = []
    if self.path.exists():
      lines = [line for line in runs.read_jsonl(self.path) if line['step'] <= step]
    runs.write_jsonl(self.path, lines)

  def write(
    self,
    kind: str,
    step: int,
    values: dict[str, float],
  ) -> None:
    """Writes values of a kind such as 'train'; a killed process loses none of them."""
    if not self._writing:
      return
    with disk_errors(self._folder, DISK_FULL):
      with open(self.path, 'a', encoding='utf-8') as file:
        file.write(json.dumps({'step': step, 'kind': kind, **values}) + '\n')
      for name, value in values.items():
        summary = scalar(f'{kind}/{name}', value)
        self._events.write_event(Event(wall_time=time.time(), step=step, summary=summary))
      self._events.flush()

  def close(self) -> None:
    """Closes the event file."""
    if self._writing:
      with contextlib.suppress(OSError):  # a full disk was reported by `write`
        self._events.close()
