"""Translates the lines of standard input, or what is typed."""

import pathlib
import sys

from mmlm.cli import flags
from mmlm.data.sources.parallel_text import decode_line
from mmlm.experiment.experiment import Experiment
from mmlm.inference.predictor import Predictor
from mmlm.utils.errors import UserError


def translate(options: flags.Translate) -> None:
  """Prints the translation of each line, in order; an empty line stays empty."""
  settings = {'decoding.n_best': str(options.n_best)} | options.settings
  experiment = Experiment.of_run(options.run, settings)
  if 'text' not in experiment.modalities:
    raise UserError(
      f'{options.run} reads {", ".join(experiment.modalities)} and no text: '
      'use `./launch.sh predict`.'
    )
  image = _read_image(options.image, experiment.modalities)
  translator = Translator(experiment, image, options.scores)
  if sys.stdin.isatty():
    _interactive(translator)
  else:
    _batches(translator, experiment.config.evaluate.batch_size)


class Translator:
  """Translates numbered lines and prints the translations.

  Args:
    image: {'image': bytes} that belongs to every line, or {}.
    scores: whether to print the score of each translation.
  """

  def __init__(self, experiment: Experiment, image: dict, scores: bool):
    self.predictor = Predictor(experiment)
    self.image = image
    self.scores = scores
    self.n_best = experiment.config.decoding.n_best

  def __call__(self, lines: list[tuple[int, str]]) -> None:
    examples = []
    for number, line in lines:
      if line.strip():
        name = f'standard input, line {number}'
        examples.append({'id': name, 'text': line.strip(), **self.image})
    predictions = iter(self.predictor(examples, 'translate') if examples else [])
    for _, line in lines:
      if line.strip():
        self._print(next(predictions))
      else:
        self._print({'n_best': [('', 0.0)] * self.n_best})

  def _print(self, prediction: dict) -> None:
    n_best = prediction.get('n_best') or [(prediction['hypothesis'], prediction['score'])]
    for text, score in n_best:
      text = ' '.join(text.splitlines())  # a model may have learned to write line breaks
      if self.scores:
        text = f'{score:.4f}\t{text}'
      print(text, flush=True)


def _interactive(translator: Translator) -> None:
  """Translates each line when it is typed; a line with an error does not end the command."""
  print('One sentence a line; Ctrl-D ends.')
  number = 0
  while True:
    try:
      line = input('> ')
    except EOFError:
      print()
      return
    number += 1
    try:
      translator([(number, line)])
    except UserError as error:
      print(f'mmlm: {error}', file=sys.stderr)


def _batches(translator: Translator, batch_size: int) -> None:
  """Translates the lines of standard input, `batch_size` at a time."""
  lines = []
  for number, line in enumerate(sys.stdin.buffer, 1):
    lines.append((number, decode_line(line.rstrip(b'\n'), 'standard input', number)))
    if len(lines) == batch_size:
      translator(lines)
      lines = []
  translator(lines)


def _read_image(path: str, modalities: tuple[str, ...]) -> dict:
  """Returns {'image': the bytes of the file} where the model reads pictures beside the text."""
  not_text = [modality for modality in modalities if modality != 'text']
  if not path and not not_text:
    return {}
  if not_text != ['image']:
    raise UserError(f'--image {path}: this model reads {", ".join(modalities)}.')
  if not path:
    raise UserError(
      'this model reads a picture with the text: name it by --image, '
      'or give a manifest to `./launch.sh predict`.'
    )
  try:
    image = pathlib.Path(path).read_bytes()
  except OSError as error:
    raise UserError(f'--image {path}: {error.strerror}.') from None
  if not image:  # elsewhere this means that an example has no picture
    raise UserError(f'--image {path}: the file has zero bytes.')
  return {'image': image}
