"""Exports a model: as safetensors and StableHLO, as a Hugging Face GPT-2, or as word vectors."""

import pathlib

from mmlm.cli import flags
from mmlm.experiment.experiment import Experiment
from mmlm.inference import model_export
from mmlm.inference.scoring import language_params
from mmlm.pretrained.formats.write_vectors import FORMATS as VECTOR_FORMATS
from mmlm.pretrained.gpt2 import export_gpt2
from mmlm.tasks import pipeline_of_run
from mmlm.utils.choices import one_of
from mmlm.utils.errors import UserError

MODEL_FORMATS = ('safetensors', 'stablehlo')
HUGGING_FACE = 'huggingface'


def export(options: flags.Export) -> None:
  """Writes the model of a run in the formats of --format.

  Raises:
    UserError: a format does not go with the run, with another format or with another flag.
  """
  formats = options.format
  for name in formats:
    one_of('--format', name, (*MODEL_FORMATS, HUGGING_FACE, *VECTOR_FORMATS))
  pipeline = pipeline_of_run(options.run)
  possible = pipeline.export_formats if pipeline else _model_formats(options.run)
  _check(options, possible)
  if pipeline:
    pipeline.export(options.run, options.output, formats[0], options.settings)
  elif formats == [HUGGING_FACE]:
    _export_hugging_face(options)
  else:
    with_functions = 'stablehlo' in formats
    model_export.export(
      options.run, options.output, options.platforms, options.settings, with_functions
    )


def _model_formats(run: str) -> tuple[str, ...]:
  """Returns the formats that go with a model of encoders and a head."""
  config = Experiment.of_run(run, {}).config
  if not config.model.encoders and config.model.head.name == 'transformer_decoder':
    return (*MODEL_FORMATS, HUGGING_FACE)
  return MODEL_FORMATS


def _check(options: flags.Export, possible: tuple[str, ...]) -> None:
  """Raises UserError where flags do not go together; `possible` formats go with the run."""
  formats = options.format
  for name in formats:
    if name not in possible:
      raise UserError(
        f'--format {name} does not go with {options.run}. Formats that do: {", ".join(possible)}.'
      )
  if options.platforms and 'stablehlo' not in formats:
    raise UserError('--platforms goes with --format stablehlo.')
  if set(formats) <= set(MODEL_FORMATS):
    return
  if len(formats) > 1:
    raise UserError(f'--format {",".join(formats)}: choose one, or safetensors,stablehlo.')
  if not options.output:
    raise UserError(f'--format {formats[0]} needs --output.')


def _export_hugging_face(options: flags.Export) -> None:
  """Writes the decoder of a language model as config.json, model.safetensors, tokenizer.json."""
  folder = pathlib.Path(options.output)
  if folder.exists() and any(folder.iterdir()):
    raise UserError(f'--output {folder}: this folder is not empty.')
  experiment = Experiment.of_run(options.run, options.settings)
  tokenizer = experiment.data.tokenizer
  assert tokenizer is not None  # a language model has one
  params, step = language_params(experiment)
  export_gpt2(folder, experiment.model.head, params['head'], tokenizer)
  print(f'Written: {folder}, the decoder of step {step}')
