"""Transcribes sound files to text, subtitles and JSON, with Whisper or a trained run."""

import collections
import contextlib
import dataclasses
import pathlib
import sys
import time
from collections.abc import Iterator
from typing import Self

from tqdm import tqdm

from mmlm.cli import flags
from mmlm.data.sources.recording import Recording
from mmlm.experiment.experiment import Experiment
from mmlm.inference.predictor import Predictor
from mmlm.training.exported_weights import is_export
from mmlm.transcription.subtitles import FORMATS, clock
from mmlm.transcription.transcriber import Transcriber
from mmlm.transcription.transcript import Segment, Transcript
from mmlm.transcription.transcription_options import TranscriptionOptions
from mmlm.transcription.whisper_model import Whisper
from mmlm.utils.choices import one_of
from mmlm.utils.errors import UserError
from mmlm.utils.run_dir import write_atomic

# Flags that a run has too; the others are Whisper's alone.
RUN_FLAGS = ('files', 'model', 'beam_size', 'output_format', 'output_dir', 'settings')


def transcribe(options: flags.Transcribe) -> list[Transcript]:
  """Prints segments as they come, writes NAME.FORMAT for each file, returns the transcripts."""
  for name in options.output_format:
    one_of('--output_format', name, FORMATS)
  durations = _durations(options.files)
  outputs = _output_paths(options.files, pathlib.Path(options.output_dir))
  is_run = (pathlib.Path(options.model) / 'checkpoints').is_dir() or is_export(options.model)
  transcribe_files = _transcribe_by_run if is_run else _transcribe_by_whisper
  transcripts = []
  with Progress(options.files, sum(durations)) as progress:
    results = transcribe_files(options, progress)
    began = time.monotonic()
    for output, transcript in zip(outputs, results):
      for name in options.output_format:
        path = output.with_name(f'{output.name}.{name}')
        write_atomic(path, FORMATS[name](transcript))
      transcripts.append(transcript)
  seconds = time.monotonic() - began
  duration = sum(transcript.duration for transcript in transcripts)
  formats = ', '.join(options.output_format)
  print(
    f'{duration:.1f} s of sound in {seconds:.1f} s; {formats} in {options.output_dir}',
    file=sys.stderr,
  )
  return transcripts


def _durations(files: list[str]) -> list[float]:
  """Returns the seconds of each file.

  Raises:
    UserError: a file is no sound; it is named before anything is computed.
  """
  durations = []
  for path in files:
    if pathlib.Path(path).is_dir():
      raise UserError(f'{path}: a folder: name the files in it.')
    if not pathlib.Path(path).is_file():
      raise UserError(f'{path}: no such file.')
    with contextlib.closing(Recording(path)) as recording:
      durations.append(recording.duration)
  return durations


def _output_paths(files: list[str], folder: pathlib.Path) -> list[pathlib.Path]:
  """Returns where each transcript goes, without the ending; two files may not share a path."""
  by_name = collections.defaultdict(list)
  for path in files:
    by_name[pathlib.Path(path).stem].append(path)
  for name, paths in by_name.items():
    if len(paths) > 1:
      raise UserError(
        f'{" and ".join(paths)} would be written to the same files {folder / name}.*: '
        'transcribe them one by one.'
      )
  return [folder / pathlib.Path(path).stem for path in files]


class Progress:
  """Prints segments under the names of their files, and shows a progress bar on a terminal.

  Args:
    seconds: duration of all files.
  """

  def __init__(self, files: list[str], seconds: float):
    self.files = files
    self.file = -1  # the number of the file whose segments came last
    self.finished = 0.0  # seconds of it
    self.bar = tqdm(total=round(seconds, 1), unit=' s of sound', disable=None, leave=False)

  def __call__(self, file: int, segments: list[Segment], seconds: float) -> None:
    """Prints new segments of a file, which is finished up to `seconds`."""
    if file != self.file:
      self.file = file
      self.finished = 0.0
      if len(self.files) > 1:
        self._print(f'{self.files[file]}:')
    for segment in segments:
      start = clock(segment.start, hours=False)
      end = clock(segment.end, hours=False)
      self._print(f'[{start} --> {end}] {segment.text.strip()}')
    self.bar.update(round(seconds - self.finished, 1))
    self.finished = seconds

  def _print(self, line: str) -> None:
    tqdm.write(line, file=sys.stdout)
    sys.stdout.flush()

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *error: object) -> None:
    self.bar.close()


def _transcribe_by_whisper(options: flags.Transcribe, progress: Progress) -> Iterator[Transcript]:
  if options.settings:
    raise UserError(
      f'--config.{next(iter(options.settings))}: {options.model} is no run folder, '
      'and has no config.'
    )
  names = _field_names(TranscriptionOptions) & _field_names(flags.Transcribe)
  values = {name: getattr(options, name) for name in names}
  values['beam_size'] = options.beam_size or TranscriptionOptions.beam_size
  values['temperature'] = _parse_temperatures(options.temperature)
  whisper = Whisper(options.model, TranscriptionOptions(**values))
  return Transcriber(whisper)(options.files, progress)


def _field_names(kind: type) -> set[str]:
  return {field.name for field in dataclasses.fields(kind)}


def _parse_temperatures(words: list[str]) -> tuple[float, ...]:
  try:
    return tuple(float(word) for word in words)
  except ValueError:
    raise UserError(f'--temperature={",".join(words)}: expected numbers.') from None


def _transcribe_by_run(options: flags.Transcribe, progress: Progress) -> Iterator[Transcript]:
  """Returns the transcripts of a run, which have one segment a file."""
  for field in flags.flags_of(flags.Transcribe):
    default = field.default
    if field.default_factory is not dataclasses.MISSING:
      default = field.default_factory()
    if field.name not in RUN_FLAGS and getattr(options, field.name) != default:
      raise UserError(f'--{field.name}: only Whisper has this, and {options.model} is a run.')
  settings = dict(options.settings)
  if options.beam_size:
    settings['decoding.method'] = 'beam' if options.beam_size > 1 else 'greedy'
    settings['decoding.beam_size'] = str(options.beam_size)
  experiment = Experiment.of_run(options.model, settings)
  if not experiment.task.transcribes(experiment.modalities):
    raise UserError(
      f'{options.model} reads {", ".join(experiment.modalities)} for the task '
      f'{experiment.config.task}: only a run that writes the text of sound transcribes.'
    )
  return _predict_transcripts(experiment, options.files, progress)


def _predict_transcripts(
  experiment: Experiment, files: list[str], progress: Progress
) -> Iterator[Transcript]:
  predictor = Predictor(experiment)
  batch_size = experiment.config.evaluate.batch_size
  language = experiment.config.data.languages.target
  for first in range(0, len(files), batch_size):
    batch = files[first : first + batch_size]
    examples = [{'id': path, 'audio': pathlib.Path(path).read_bytes()} for path in batch]
    predictions = predictor(examples, 'transcribe')
    for i, (prediction, seconds) in enumerate(zip(predictions, _durations(batch))):
      text = prediction['hypothesis']
      segments = (Segment(0.0, round(seconds, 2), text),) if text else ()
      progress(first + i, list(segments), seconds)
      yield Transcript(text, language, seconds, segments)
