"""Transcribes sound files to text, subtitles and JSON, with Whisper or a run."""

import collections
import contextlib
import pathlib
import sys
import time
from collections.abc import Iterator
from dataclasses import fields

from tqdm import tqdm

from mmlm.cli.flags import Transcribe
from mmlm.data.sources.recording import Recording
from mmlm.experiment.experiment import Experiment
from mmlm.experiment.prediction import Predictor
from mmlm.training.exported_weights import is_export
from mmlm.transcription.subtitles import FORMATS, clock
from mmlm.transcription.transcriber import Transcriber
from mmlm.transcription.transcription_options import Options, Segment, Transcript
from mmlm.transcription.whisper_model import Whisper
from mmlm.utils.choices import one_of
from mmlm.utils.errors import UserError
from mmlm.utils.run_dir import write_atomic


def transcribe(flags: Transcribe) -> list[Transcript]:
  """Prints segments as they come, writes NAME.FORMAT for each file, and returns the transcripts."""
  files, model, format, output_dir = flags.files, flags.model, flags.format, flags.output_dir
  settings = flags.settings
  options = {
    field.name: getattr(flags, field.name)
    for field in fields(Options)
    if hasattr(flags, field.name)
  }
  for name in format:
    one_of('--format', name, FORMATS)
  durations = _durations(files)
  outputs = _outputs(files, pathlib.Path(output_dir))
  beam_size = options.pop('beam_size')
  is_run = (pathlib.Path(model) / 'checkpoints').is_dir() or is_export(model)
  if is_run:
    answers = _of_run(files, model, settings | _beam(beam_size), options)
  elif settings:
    raise UserError(
      f'--config.{next(iter(settings))}: {model} is no run folder, and has no config.'
    )
  else:
    answers = Transcriber(
      Whisper(model, Options(**options, beam_size=beam_size or Options.beam_size))
    )
  transcripts = []
  began = time.monotonic()
  with _Told(files, sum(durations)) as told:
    for output, transcript in zip(outputs, answers if is_run else answers(files, told)):
      if is_run:
        told(len(transcripts), transcript.segments, transcript.duration)
      for name in format:
        write_atomic(output.with_name(f'{output.name}.{name}'), FORMATS[name](transcript))
      transcripts.append(transcript)
  seconds = time.monotonic() - began
  print(
    f'{sum(t.duration for t in transcripts):.1f} s of sound in {seconds:.1f} s; {", ".join(format)} in {output_dir}',
    file=sys.stderr,
  )
  return transcripts


def _durations(files: list[str]) -> list[float]:
  """Seconds of each file; UserError names the first that is no sound, before anything is computed."""
  durations = []
  for path in files:
    if not pathlib.Path(path).is_file():
      raise UserError(
        f'{path}: {"a folder: give the files in it" if pathlib.Path(path).is_dir() else "no such file"}.'
      )
    with contextlib.closing(Recording(path)) as recording:
      durations.append(recording.duration)
  return durations


def _outputs(files: list[str], folder: pathlib.Path) -> list[pathlib.Path]:
  """Where each transcript goes, without the ending; two files may not share a place."""
  names = [pathlib.Path(path).stem for path in files]
  if twice := [name for name, count in collections.Counter(names).items() if count > 1]:
    same = [path for path, name in zip(files, names) if name == twice[0]]
    raise UserError(
      f'{" and ".join(same)} would be written to the same files {folder / twice[0]}.*: transcribe them one by one.'
    )
  return [folder / name for name in names]


class _Told:
  """Prints what comes, under the name of the file where there are several, and shows how far it has come on a terminal."""

  def __init__(self, files: list[str], seconds: float):
    self.files = files
    self.file = -1
    self.before = 0.0
    self.bar = tqdm(total=round(seconds, 1), unit=' s of sound', disable=None, leave=False)

  def __call__(self, file: int, segments: list[Segment], seconds: float):
    if file != self.file:
      self.file = file
      self.before = 0.0
      if len(self.files) > 1:
        self._print(f'{self.files[file]}:')
    for segment in segments:
      self._print(
        f'[{clock(segment.start, hours=False)} --> {clock(segment.end, hours=False)}] {segment.text.strip()}'
      )
    self.bar.update(round(seconds - self.before, 1))
    self.before = seconds

  def _print(self, line: str):
    tqdm.write(line, file=sys.stdout)
    sys.stdout.flush()

  def __enter__(self):
    return self

  def __exit__(self, *error):
    self.bar.close()


def _beam(size: int) -> dict:
  """--beam_size as settings of a run."""
  if size:
    return {'decoding.method': 'beam' if size > 1 else 'greedy', 'decoding.beam_size': str(size)}
  return {}


def _of_run(files: list[str], folder: str, settings: dict, options: dict) -> Iterator[Transcript]:
  """What a run of ours writes: one segment a file."""
  if changed := [name for name, value in options.items() if value != getattr(Options, name)]:
    raise UserError(f'--{changed[0]}: only a Whisper has this, and {folder} is a run.')
  experiment = Experiment.of_run(folder, settings)
  if experiment.modalities != ('audio',) or experiment.task.answers != 'targets':
    raise UserError(
      f'{folder} reads {", ".join(experiment.modalities)} for the task {experiment.config.task}: only a run that writes text of sound transcribes.'
    )
  predictor = Predictor(experiment)
  size = experiment.config.evaluate.batch_size
  for i in range(0, len(files), size):
    some = files[i : i + size]
    examples = [{'id': path, 'audio': pathlib.Path(path).read_bytes()} for path in some]
    for row, seconds in zip(predictor(examples, 'transcribe'), _durations(some)):
      text = row['hypothesis']
      yield Transcript(
        text,
        experiment.config.data.languages.target,
        seconds,
        (Segment(0.0, round(seconds, 2), text),) if text else (),
      )
