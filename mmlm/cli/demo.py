"""./launch.sh demo RUN...: a page in the browser on which runs and Whispers answer."""

import importlib.util
import socket
import time
import webbrowser

from mmlm.demo.answerers import open_model
from mmlm.demo.inputs import Limits
from mmlm.utils.errors import UserError

NEEDS = {
  'starlette': 'starlette',
  'uvicorn': 'uvicorn',
  'python_multipart': 'python-multipart',
}  # module: package


def demo(
  runs: list[str], host: str, port: int, max_upload_mb: int, open: bool, settings: dict
) -> None:
  """Serves the page until Ctrl-C; everything is read and compiled before."""
  if missing := [
    package for module, package in NEEDS.items() if importlib.util.find_spec(module) is None
  ]:
    raise UserError(
      f'the demo needs {", ".join(missing)}: .venv/bin/python -m pip install -r requirements-demo.txt'
    )
  if max_upload_mb < 1:
    raise UserError(f'--max_upload_mb={max_upload_mb}: expected 1 or more.')
  if twice := [run for run in runs if runs.count(run) > 1]:
    raise UserError(f'{twice[0]} is named twice.')
  with listen(host, port) as listening:  # a port that is taken is said at once
    serve(runs, host, listening, Limits(max_upload_mb << 20), open, settings)


def serve(
  runs: list[str], host: str, listening: socket.socket, limits: Limits, open: bool, settings: dict
) -> None:
  import uvicorn

  from mmlm.demo.server import LOOPBACK, Server

  if host not in LOOPBACK:
    print(
      f'WARNING: --host {host}: everybody who reaches this machine over the network can use the page, without a password.'
    )
  models = {run: open_model(run, settings, limits) for run in runs}
  for number, (name, model) in enumerate(models.items(), 1):
    print(f'{number} of {len(models)}: {name} is read and compiled', end=' ', flush=True)
    began = time.monotonic()
    model.get_ready()
    print(f'({time.monotonic() - began:.0f} s)', flush=True)
  url = f'http://{f"[{host}]" if ":" in host else host}:{listening.getsockname()[1]}'
  print(f'The page is at {url} (Ctrl-C ends)', flush=True)
  if open:
    webbrowser.open(url)
  app = Server(models, limits).app(host)
  uvicorn.Server(
    uvicorn.Config(app, log_level='warning', access_log=False, timeout_graceful_shutdown=5)
  ).run([listening])


def listen(host: str, port: int) -> socket.socket:
  """A socket that listens; UserError where that cannot be."""
  try:
    return socket.create_server(
      (host, port), family=socket.AF_INET6 if ':' in host else socket.AF_INET
    )
  except (OSError, OverflowError) as error:
    reason = str(getattr(error, 'strerror', None) or error).split(' (while')[0].rstrip('.')
    raise UserError(
      f'--host {host} --port {port}: {reason}. Choose another --port (0 = any that is free) or --host.'
    ) from None
