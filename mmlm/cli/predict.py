"""Predicts for a picture, a sound, a folder of these, a sentence, or a manifest."""

from mmlm.cli import flags
from mmlm.experiment.experiment import Experiment
from mmlm.inference.input_files import read_inputs
from mmlm.inference.predictor import Predictor
from mmlm.utils import run_dir
from mmlm.utils.errors import UserError


def predict(options: flags.Predict) -> list[dict]:
  """Prints predictions, writes them to --output as JSON lines, and returns them."""
  experiment = Experiment.of_run(options.run, options.settings)
  if not experiment.modalities:
    raise UserError(
      f'{options.run} holds a language model, which reads no input: '
      f'use `./launch.sh generate {options.run} --prompt TEXT`.'
    )
  examples = read_inputs(options.input, experiment.modalities)
  predictions = Predictor(experiment)(examples, f'--input {options.input}')
  for prediction in predictions:
    print(f'{prediction["id"]}\t{prediction["hypothesis"]}')
    for text, score in prediction.get('n_best', [])[1:]:
      print(f'\t{text}\t{score:.3f}')
  if options.output:
    run_dir.write_jsonl(options.output, predictions)
  return predictions
