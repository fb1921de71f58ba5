"""What a training run tells: metrics.jsonl, TensorBoard's event files, and lines on the terminal."""

import contextlib
import datetime
import json
import math
import os
import time

import jax
import numpy as np
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from mmlm.parallel import peak_flops
from mmlm.utils import run_dir as runs
from mmlm.utils.errors import disk_errors

FULL = 'the newest lines of metrics.jsonl were not written, checkpoints are whole'


class Log:
  """metrics.jsonl and TensorBoard. On resume the lines after the restored step are cut, so that none stands twice.

  Of several processes one writes (`writing`).

  Raises:
    UserError: a full disk.
  """

  def __init__(self, folder, step: int, writing: bool = True):
    if not writing:
      self.write = lambda *_: None
      self.close = lambda: None
      return
    self.path = folder / 'metrics.jsonl'
    with disk_errors(folder, FULL):
      if self.path.exists():
        rows = [row for row in runs.read_jsonl(self.path) if row['step'] <= step]
      else:
        rows = []
      runs.write_jsonl(self.path, rows)
      (folder / 'tensorboard').mkdir(exist_ok=True)
      # Not by tensorboardX's SummaryWriter, whose thread dies of a full disk and leaves the training waiting for it.
      self._events = EventsWriter(str(folder / 'tensorboard' / 'events'), f'.{os.getpid()}')
      for part in (
        {'file_version': 'brain.Event:2'},
        {'session_log': SessionLog(status=SessionLog.START)},
      ):
        self._events.write_event(Event(step=step + 1, **part))  # hides what is cut

  def write(self, kind: str, step: int, values: dict):
    with disk_errors(self.path.parent, FULL):
      with open(self.path, 'a', encoding='utf-8') as file:
        file.write(json.dumps({'step': step, 'kind': kind, **values}) + '\n')
      for name, value in values.items():
        self._events.write_event(
          Event(wall_time=time.time(), step=step, summary=scalar(f'{kind}/{name}', value))
        )
      self._events.flush()  # a killed process loses no line of either

  def close(self):
    with contextlib.suppress(OSError):  # of a full disk, which was told where it mattered
      self._events.close()


class Progress:
  """Means since the last line, examples a second, and the time left.

  `sums`: of the loss, the weight, the gradient norm and the steps since the last line; a checkpoint keeps them.
  `among`: runs that train together; the time is divided by them. `name` is said before their lines.
  """

  def __init__(
    self, start: int, total: int, sums: list | None = None, name: str = '', among: int = 1
  ):
    self.total = total
    self.began = (time.monotonic(), start)
    self.name = name
    self.among = among
    self.warm = None  # (time, step) after compilation, for the time left
    self._reset()
    self.sums += sums or 0

  def _reset(self):
    self.sums = np.zeros(4)
    self.examples = 0
    self.flops = 0.0
    self.since = time.monotonic()

  def add(self, metrics: dict, examples: int, flops: float):
    weight = float(metrics['weight'])
    self.sums += (weight * float(metrics['loss']), weight, float(metrics['gradient_norm']), 1)
    self.examples += examples
    self.flops += flops

  def line(self, step: int) -> dict:
    now, (loss, weight, norm, steps) = time.monotonic(), self.sums.tolist()
    # none where all were skipped
    if steps:
      values = {'loss': loss / max(weight, 1e-8), 'gradient_norm': norm / steps}
    else:
      values = {}
    values['seconds'] = (now - self.since) / self.among
    values['examples_per_second'] = self.examples / values['seconds']
    if (peak := peak_flops()) and self.flops:
      values['mfu'] = self.flops / (values['seconds'] * peak * jax.device_count())
    since, first = self.warm or self.began
    left = datetime.timedelta(
      seconds=int((now - since) / max(step - first, 1) * (self.total - step))
    )
    self.warm = self.warm or (now, step)
    print(
      f'{self.name}step {step:>6}/{self.total} {100 * step / self.total:3.0f} %  loss {values.get("loss", math.nan):.4f}  '
      f'{values["examples_per_second"]:.0f} examples/s  left {left}',
      flush=True,
    )
    self._reset()
    return values
