"""Estimates memory and communication of a train step on a simulated device mesh."""

import os
import re
import sys

from mmlm.cli import flags
from mmlm.utils.errors import UserError


def plan(options: flags.Plan) -> None:
  """Prints memory, collectives and operations of a compiled step, which is never run.

  Ends with exit code 1 where the step needs more than --memory on a device.
  """
  limit = parse_bytes(options.memory) if options.memory else None
  if options.devices < 1:
    raise UserError(f'--devices={options.devices}: expected 1 or more.')
  _simulate_devices(options.devices)
  from mmlm.experiment import virtual_mesh

  cost = virtual_mesh.planned(options.config, options.settings, options.devices, options.mesh)
  print('\n'.join(virtual_mesh.format_cost(cost)))
  if limit is not None:
    fits = cost['memory'] <= limit
    verdict = 'fits' if fits else 'does NOT fit'
    share = 100 * cost['memory'] / limit
    print(
      f'It {verdict} into {options.memory} a device: {share:.1f} % of it, '
      'as XLA lays it out for a CPU.'
    )
    if not fits:
      sys.exit(1)


def _simulate_devices(count: int) -> None:
  """Makes jax start with `count` CPU devices, if it has not been imported yet."""
  if 'jax' not in sys.modules:
    flag = f'--xla_force_host_platform_device_count={count}'
    os.environ['JAX_PLATFORMS'] = 'cpu'
    os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {flag}'


def parse_bytes(text: str) -> int:
  """Returns a size in bytes: '80GB' -> 80 * 10^9, '16GiB' -> 16 * 2^30."""
  match = re.fullmatch(r'(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?', text, re.IGNORECASE)
  if not match:
    raise UserError(f"--memory={text!r}: expected a size such as '80GB' or '16GiB'.")
  number, prefix, binary = match.groups()
  base = 1024 if binary else 1000
  exponent = ' KMGT'.index(prefix.upper() or ' ')
  return int(float(number) * base**exponent)
