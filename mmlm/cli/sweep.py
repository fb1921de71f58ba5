"""`./launch.sh sweep` and `./launch.sh runs`."""

import contextlib
import pathlib
import sys

from mmlm import config as configs
from mmlm.sweeps.executors import EXECUTORS
from mmlm.sweeps.listing import SWEEP, list_runs
from mmlm.sweeps.spaces import load_space
from mmlm.sweeps.study import PRUNERS, SAMPLERS, Plan, Sweep
from mmlm.training.loop import Interrupted
from mmlm.utils import run_dir as run_folders
from mmlm.utils.choices import one_of
from mmlm.utils.errors import UserError

TRIALS = 20  # where nothing says how many


def sweep(config_path: str, space: str, workdir: str, settings: dict, seeds: int, **how) -> None:
  """Trains CONFIG at points of a space, or goes on with the sweep that is in --workdir.

  `how`: the flags sampler, pruner, trials, and executor, jobs, slurm.
  """
  for flag, value, least in (
    ('trials', how['trials'], 0),
    ('seeds', seeds, 1),
    ('jobs', how['jobs'], 0),
  ):
    if value < least:
      raise UserError(f'--{flag}={value}: expected {least} or more.')
  train = EXECUTORS[one_of('--executor', how['executor'], EXECUTORS)]
  found = load_space(space, config_path)
  sampler = one_of('--sampler', how['sampler'] or _usual_sampler(found), SAMPLERS)
  config = configs.override(configs.load_config(config_path), settings)
  trials = how['trials'] or (0 if sampler == 'grid' else TRIALS)
  plan = Plan(
    config_path,
    config,
    settings,
    found,
    sampler,
    one_of('--pruner', how['pruner'], PRUNERS),
    trials,
    seeds,
  )
  folder = pathlib.Path(
    workdir or f'runs/sweeps/{pathlib.Path(config_path.partition(":")[0]).stem}'
  )
  run_folders.refuse_foreign(folder, SWEEP, 'sweep')  # before a lock is left in it
  with contextlib.closing(run_folders.lock(folder)):
    swept = Sweep(folder, plan)
    print(
      f'{swept.wanted} trials ({sampler}), {seeds} seed{"s" * (seeds > 1)} each; {folder}',
      flush=True,
    )
    try:
      train(
        swept,
        how['jobs'],
        dict(word.partition('=')[::2] for word in how['slurm']),
      )
    except Interrupted as stopped:
      print(stopped)
      sys.exit(stopped.code)
    swept.write()
    print(f'\n{swept.summary()}\n\n{folder / "results.json"}')


def _usual_sampler(space) -> str:
  """All points where they have an end."""
  try:
    space.grid()
  except UserError:
    return 'tpe'
  return 'grid'


def runs(folders: list, settings: dict) -> None:
  """Prints a line for each run below a folder, `runs` where none is named."""
  if settings:
    raise UserError('runs reads no config.')
  for folder in folders or ['runs']:
    list_runs(folder)
