"""The server of the demo page, an application of Starlette.

GET /          the page (page.html, page.css, page.js)
GET /runs      {"runs": [name, task and inputs of each model], "limits": ...}
POST /answer   a form with the run and a file or text for each modality; {"error": text} on failure
"""

import pathlib
import threading
import time

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse
from starlette.routing import Route

from mmlm.demo.answerers import DemoModel, ModelInputs
from mmlm.demo.inputs import Limits, Upload
from mmlm.utils.errors import UserError

FOLDER = pathlib.Path(__file__).parent
# Everything comes from this server, and no other page may embed this one.
POLICY = '; '.join(
  [
    "default-src 'self'",
    "img-src 'self' data: blob:",
    'media-src blob:',
    "frame-ancestors 'none'",
    "form-action 'self'",
  ]
)
FORM_SIZE = 64 << 10  # bytes of a request without its files
LONGEST_NAME = 80  # characters of a file's name in messages
LOOPBACK = ('127.0.0.1', 'localhost', '::1')


class Server:
  """Answers one request at a time, however many arrive.

  Args:
    models: {name: model}.
  """

  def __init__(self, models: dict[str, DemoModel], limits: Limits):
    self.models = models
    self.limits = limits
    self._lock = threading.Lock()

  def app(self, host: str) -> Starlette:
    """Returns the application for a host name or address."""
    routes = [Route(f'/{name}', _file(name)) for name in ('page.css', 'page.js')]
    routes += [
      Route('/', _file('page.html')),
      Route('/runs', self.runs),
      Route('/answer', self.answer, methods=['POST']),
    ]
    middleware = []
    # Otherwise a foreign page whose name resolves to this machine could read the answers.
    if host in LOOPBACK:
      allowed = [*LOOPBACK, '[::1]']
      middleware.append(Middleware(TrustedHostMiddleware, allowed_hosts=allowed))
    handlers = {
      UserError: _user_error,
      HTTPException: _http_error,
      Exception: _unexpected_error,
    }
    return Starlette(routes=routes, middleware=middleware, exception_handlers=handlers)

  async def runs(self, request: Request) -> JSONResponse:
    """Describes the models and the limits of requests."""
    runs = [model.described() for model in self.models.values()]
    return JSONResponse({'runs': runs, 'limits': self.limits._asdict()})

  async def answer(self, request: Request) -> JSONResponse:
    """Answers a request with the model that it names."""
    model, inputs = await self._read(request)
    return JSONResponse(await run_in_threadpool(self._compute, model, inputs))

  def _compute(self, model: DemoModel, inputs: ModelInputs) -> dict:
    with self._lock:
      began = time.monotonic()
      answer = model(inputs)
      return answer | {'took': round(time.monotonic() - began, 2)}

  async def _read(self, request: Request) -> tuple[DemoModel, ModelInputs]:
    """Returns the model that a request names, and its inputs.

    Raises:
      HTTPException: the request is too large or is not a form.
      UserError: no such model, or an input that it does not read.
    """
    length = request.headers.get('content-length', '')
    if not length.isdigit():
      raise HTTPException(411, 'The request has no Content-Length.')
    size = int(length)
    if size > self.limits.bytes + FORM_SIZE:
      raise HTTPException(
        413,
        f'{size / 2**20:.1f} MiB are too much: {self.limits.bytes / 2**20:g} MiB at most '
        '(--max_upload_mb).',
      )
    async with request.form(max_files=8, max_fields=8, max_part_size=FORM_SIZE) as form:
      fields = dict(form)
      name = fields.pop('run', '')
      if not isinstance(name, str) or name not in self.models:
        raise UserError(f'no run {name!r} here, but {", ".join(self.models)}.')
      model = self.models[name]
      inputs: ModelInputs = {}
      for modality, value in fields.items():
        _check_field(model, modality, isinstance(value, str))
        if isinstance(value, str):
          inputs[modality] = value
        else:
          content = await value.read()
          inputs[modality] = Upload(_plain_name(value.filename, modality), content)
    return model, inputs


def _check_field(model: DemoModel, modality: str, is_text: bool) -> None:
  """Checks that a model reads a modality as text or file."""
  if modality not in model.kinds:
    raise UserError(f'{model.name} does not read {modality}: it reads {", ".join(model.kinds)}.')
  kind = model.kinds[modality]
  if is_text != (kind == 'text'):
    sent_as = 'a text' if is_text else 'a file'
    raise UserError(f'{modality} is sent as {sent_as}, where {model.name} reads {kind}.')


def _file(name: str):
  async def send(request: Request) -> FileResponse:
    return FileResponse(
      FOLDER / name,
      headers={
        'Content-Security-Policy': POLICY,
        'Cache-Control': 'no-cache',
        'X-Content-Type-Options': 'nosniff',
      },
    )

  return send


def _plain_name(name: str | None, modality: str) -> str:
  """Returns the name of a file without folders and unprintable characters."""
  base = (name or '').replace('\\', '/').split('/')[-1]
  printable = ''.join(filter(str.isprintable, base))
  return printable[:LONGEST_NAME] or modality


async def _user_error(request: Request, error: Exception) -> JSONResponse:
  return JSONResponse({'error': str(error)}, 400)


async def _http_error(request: Request, error: HTTPException) -> JSONResponse:
  return JSONResponse({'error': error.detail}, error.status_code, error.headers)


async def _unexpected_error(request: Request, error: Exception) -> JSONResponse:
  return JSONResponse(
    {'error': 'The model failed on this input. The terminal of the demo shows the reason.'}, 500
  )
