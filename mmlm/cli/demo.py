"""Serves a page in the browser on which runs and Whispers answer, with their attention."""

import importlib.util
import socket
import time
import webbrowser

from mmlm.cli import flags
from mmlm.demo.answerers import open_model
from mmlm.demo.inputs import Limits
from mmlm.utils.errors import UserError

# {module: package}
REQUIREMENTS = {
  'starlette': 'starlette',
  'uvicorn': 'uvicorn',
  'python_multipart': 'python-multipart',
}


def demo(options: flags.Demo) -> None:
  """Loads and compiles all models, then serves the page until Ctrl-C."""
  _check(options)
  with listen(options.host, options.port) as listening:  # a port in use is reported at once
    serve(options, listening)


def _check(options: flags.Demo) -> None:
  missing = []
  for module, package in REQUIREMENTS.items():
    if importlib.util.find_spec(module) is None:
      missing.append(package)
  if missing:
    raise UserError(
      f'the demo needs {", ".join(missing)}: '
      '.venv/bin/python -m pip install -r requirements-demo.txt'
    )
  if options.max_upload_mb < 1:
    raise UserError(f'--max_upload_mb={options.max_upload_mb}: expected 1 or more.')
  for run in options.runs:
    if options.runs.count(run) > 1:
      raise UserError(f'{run} is named twice.')


def serve(options: flags.Demo, listening: socket.socket) -> None:
  """Serves the page on a socket that listens already."""
  import uvicorn

  from mmlm.demo.server import LOOPBACK, Server

  host = options.host
  if host not in LOOPBACK:
    print(
      f'WARNING: --host {host}: everybody who reaches this machine over the network '
      'can use the page, without a password.'
    )
  limits = Limits(options.max_upload_mb << 20)
  models = {run: open_model(run, options.settings, limits) for run in options.runs}
  for number, (name, model) in enumerate(models.items(), 1):
    print(f'{number} of {len(models)}: {name} is read and compiled', end=' ', flush=True)
    began = time.monotonic()
    model.get_ready()
    print(f'({time.monotonic() - began:.0f} s)', flush=True)
  address = f'[{host}]' if ':' in host else host
  url = f'http://{address}:{listening.getsockname()[1]}'
  print(f'The page is at {url} (Ctrl-C ends)', flush=True)
  if options.open:
    webbrowser.open(url)
  app = Server(models, limits).app(host)
  config = uvicorn.Config(app, log_level='warning', access_log=False, timeout_graceful_shutdown=5)
  uvicorn.Server(config).run([listening])


def listen(host: str, port: int) -> socket.socket:
  """Returns a socket that listens.

  Raises:
    UserError: the port is in use, or the address is not one of this machine.
  """
  family = socket.AF_INET6 if ':' in host else socket.AF_INET
  try:
    return socket.create_server((host, port), family=family)
  except (OSError, OverflowError) as error:
    reason = str(getattr(error, 'strerror', None) or error).split(' (while')[0].rstrip('.')
    raise UserError(
      f'--host {host} --port {port}: {reason}. '
      'Choose another --port (0 = any that is free) or --host.'
    ) from None
