"""Trains a config at many points of a space of settings, or resumes a sweep."""

import contextlib
import pathlib
import sys

from mmlm import config as configs
from mmlm.cli import flags
from mmlm.sweeps.executors import EXECUTORS
from mmlm.sweeps.listing import SWEEP
from mmlm.sweeps.spaces import load_space
from mmlm.sweeps.study import PRUNERS, SAMPLERS, Plan, Sweep
from mmlm.training.loop import Interrupted
from mmlm.utils import run_dir
from mmlm.utils.choices import one_of
from mmlm.utils.errors import UserError

TRIALS = 20  # of an infinite space


def sweep(options: flags.Sweep) -> None:
  """Runs the trials of a sweep in a folder and prints its summary."""
  _check_least('trials', options.trials, 0)
  _check_least('seeds', options.seeds, 1)
  _check_least('jobs', options.jobs, 0)
  execute = EXECUTORS[one_of('--executor', options.executor, EXECUTORS)]
  plan = _plan_of(options)
  name = pathlib.Path(options.config.partition(':')[0]).stem
  folder = pathlib.Path(options.workdir or f'runs/sweeps/{name}')
  run_dir.refuse_foreign(folder, SWEEP, 'sweep')  # before a lock is left in it
  with contextlib.closing(run_dir.lock(folder)):
    state = Sweep(folder, plan)
    seeds = f'{plan.seeds} seed{"s" * (plan.seeds > 1)} each'
    print(f'{state.trial_count} trials ({plan.sampler}), {seeds}; {folder}', flush=True)
    try:
      execute(state, options.jobs, _parse_slurm(options.slurm))
    except Interrupted as stopped:
      print(stopped)
      sys.exit(stopped.code)
    state.write()
    print(f'\n{state.summary()}\n\n{folder / "results.json"}')


def _parse_slurm(words: list[str]) -> dict[str, str]:
  """Returns {option: value} of 'time=60'; an option without a value has ''."""
  options = {}
  for word in words:
    option, _, value = word.partition('=')
    options[option] = value
  return options


def _check_least(flag: str, value: int, least: int) -> None:
  if value < least:
    raise UserError(f'--{flag}={value}: expected {least} or more.')


def _plan_of(options: flags.Sweep) -> Plan:
  space = load_space(options.space, options.config)
  sampler = one_of('--sampler', options.sampler or _default_sampler(space), SAMPLERS)
  trials = options.trials
  if not trials and sampler != 'grid':
    trials = TRIALS
  return Plan(
    options.config,
    configs.override(configs.load_config(options.config), options.settings),
    options.settings,
    space,
    sampler,
    one_of('--pruner', options.pruner, PRUNERS),
    trials,
    options.seeds,
  )


def _default_sampler(space) -> str:
  """Returns 'grid' for a finite space."""
  try:
    space.grid()
  except UserError:
    return 'tpe'
  return 'grid'
