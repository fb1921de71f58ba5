"""What a config may not ask for, found before anything is read."""

from typing import Any

from mmlm.data.running_text import check_stream
from mmlm.data.text import check_language
from mmlm.evaluation.metrics import METRICS
from mmlm.experiment.data import ctc_labels_of
from mmlm.models.encoders import ENCODERS
from mmlm.models.heads import HEADS
from mmlm.parallel.strategies import Strategy
from mmlm.utils.choices import one_of
from mmlm.utils.errors import UserError


def check_config(config: Any, task: Any, parallel: Strategy) -> None:
  """Checks that the parts of a completed config go together.

  Raises:
    UserError: names what does not.
  """
  _check_task(config, task)
  for name in config.evaluate.metrics:
    one_of('evaluate.metrics', name, METRICS)
  for language in filter(None, config.data.languages.values()):
    check_language(language)
  _check_positions(config)
  _check_alignment(config)
  if config.data.stream:
    continues_text = task.continues_text(tuple(config.model.encoders))
    check_stream(config, continues_text, parallel.devices, parallel.part[1])


def _check_task(config: Any, task: Any) -> None:
  if task.pipeline:
    raise UserError(
      f'task={config.task}: this command does not apply. '
      f'Commands that do: {", ".join(task.pipeline.commands)}.'
    )
  if not config.model.encoders and task.needs_encoders:
    raise UserError(f'model.encoders is empty: name one a modality, of {sorted(ENCODERS)}.')
  heads = [name for name, head in HEADS.items() if head.produces in task.uses]
  one_of(f'model.head.name of {config.task}', config.model.head.name, heads)


def _check_positions(config: Any) -> None:
  """Checks that learned and sinusoidal positions reach data.max_length."""
  length = config.data.max_length
  for modality, options in config.model.encoders.items():
    limit = options.get('max_positions', length) * options.get('subsampling', 1)
    if limit < length and options.get('positions') in ('learned', 'sinusoidal'):
      raise UserError(
        f'data.max_length={length}: model.encoders.{modality} ({options.name}) has only '
        f'{limit} positions.'
      )


def _check_alignment(config: Any) -> None:
  """Checks that a CTC branch has one sequence to align with."""
  modalities = tuple(config.model.encoders)
  if ctc_labels_of(config.model.head) and modalities not in (('audio',), ('text',), ('video',)):
    raise UserError(
      f'model.head.name={config.model.head.name!r} aligns its output with one sequence: '
      f'name audio alone in model.encoders, not {modalities}.'
    )
