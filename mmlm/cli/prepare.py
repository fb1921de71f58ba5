"""Builds a data set once from its original files, or checks a manifest."""

from mmlm.cli import flags
from mmlm.data.datasets.preparation import prepare as prepare_dataset
from mmlm.data.sources.manifest import ManifestSource, check_files


def prepare(options: flags.Prepare) -> None:
  """Builds the data set, or checks every line, picture and sound of the manifest."""
  name = options.name
  if name.endswith('.jsonl'):
    examples = ManifestSource(name, require=())
    good = check_files(examples, options.data_dir, options.skip_broken)
    print(f'{name}: {len(good)} of {len(examples)} examples are good.')
    return
  path = prepare_dataset(name, options.source or None, options.data_dir, options.skip_broken)
  print(f'Prepared: {path}')
