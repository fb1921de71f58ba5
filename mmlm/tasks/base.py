"""What every task states about itself."""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple


class Pipeline(NamedTuple):
  """The experiment and the commands of a task whose model is not built of encoders and a head."""

  experiment: Callable[..., Any]  # (config, folder) -> its experiment
  training_parts: Callable[..., tuple]  # (experiment, split) -> (loop.Parts, TrainState)
  evaluate: Callable[..., list[dict]]  # (run, splits, settings, greedy, text_from) -> scores
  export: Callable[..., None]  # (run, output, format, settings)
  export_formats: tuple[str, ...]
  commands: tuple[str, ...]  # that apply to the task


class Task:
  """A task; its subclasses are dataclasses, registered in TASKS by a line each."""

  # None: the pipeline of mmlm.experiment
  pipeline: ClassVar[Pipeline | None] = None
  # whether a sweep may train several trials as one program
  trains_vectorised: ClassVar[bool] = True
