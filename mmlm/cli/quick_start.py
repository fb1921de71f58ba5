"""Trains a captioner on generated pictures, evaluates it and writes a report (a few minutes)."""

import pathlib

from mmlm.cli import flags
from mmlm.cli.evaluate import evaluate
from mmlm.cli.report import report
from mmlm.cli.train import train
from mmlm.experiment.prediction import file_name
from mmlm.utils import run_dir

CONFIG = 'configs/captioning/unicode_pictures.py'
EXAMPLES = 8


def quick_start(options: flags.QuickStart) -> None:
  """Trains on pictures of characters, evaluates on held-out faces and characters, reports."""
  folder = options.workdir
  train(flags.Train(config=CONFIG, workdir=folder, settings=options.settings))
  results = evaluate(flags.Evaluate(run=folder))
  unshuffled = [result for result in results if not result['shuffled']]
  split = file_name(unshuffled[0]['split'])
  name = f'{split}-{unshuffled[0]["step"]}.jsonl'
  predictions = run_dir.read_jsonl(pathlib.Path(folder) / 'predictions' / name)
  print('\nFrom the held-out faces (true name / caption):')
  stride = max(1, len(predictions) // EXAMPLES)
  for prediction in predictions[::stride][:EXAMPLES]:
    print(f'  {prediction["references"][0]:<48} {prediction["hypothesis"]}')
  print()
  report(flags.Report(folders=[folder]))
