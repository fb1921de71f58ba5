"""`plan`: the train step of a config compiled for devices that are not there, to know before a run whether it fits and what it sends."""

import os
import re
import sys

from mmlm.utils.errors import UserError


def plan(config_path: str, devices: int, mesh: str, memory: str, settings: dict) -> None:
  """Prints bytes a device, collectives and floating-point operations of a step of CONFIG on a virtual mesh; nothing is run.

  Ends with code 1 where it does not fit into `memory` a device.
  """
  limit = bytes_of(memory) if memory else None
  if devices < 1:
    raise UserError(f'--devices={devices}: expected 1 or more.')
  if 'jax' not in sys.modules:  # which reads these when it starts
    os.environ['JAX_PLATFORMS'] = 'cpu'
    os.environ['XLA_FLAGS'] = (
      f'{os.environ.get("XLA_FLAGS", "")} --xla_force_host_platform_device_count={devices}'
    )
  from mmlm.experiment import virtual_mesh as virtual

  found = virtual.planned(config_path, settings, devices, mesh)
  print('\n'.join(virtual.told(found)))
  if limit is not None:
    fits = found['memory'] <= limit
    share = 100 * found['memory'] / limit
    print(
      f'It {"fits" if fits else "does NOT fit"} into {memory} a device: {share:.1f} % of it, as XLA lays it out for a CPU.'
    )
    if not fits:
      sys.exit(1)


def bytes_of(text: str) -> int:
  """'80GB' -> 80 * 10^9, '16GiB' -> 16 * 2^30."""
  match = re.fullmatch(r'(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?', text, re.IGNORECASE)
  if not match:
    raise UserError(f"--memory={text!r}: expected a size such as '80GB' or '16GiB'.")
  return int(
    float(match[1]) * (1024 if match[3] else 1000) ** ' KMGT'.index(match[2].upper() or ' ')
  )
