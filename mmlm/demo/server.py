"""The page and what it asks for, as an application of Starlette.

GET /          the page (page.html, page.css, page.js)
GET /runs      {"runs": [what each is called, does and reads], "limits": ...}
POST /answer   a form: run, and for each modality a file or a text -> the answer, or {"error": text}
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

from mmlm.demo.inputs import Limits, Upload
from mmlm.utils.errors import UserError

HERE = pathlib.Path(__file__).parent
# Nothing comes from elsewhere, no other page may show this one in itself.
POLICY = "default-src 'self'; img-src 'self' data: blob:; media-src blob:; frame-ancestors 'none'; form-action 'self'"
FORM = 64 << 10  # bytes of a request beside its files
LOOPBACK = ('127.0.0.1', 'localhost', '::1')


class Server:
  """Answers requests one after another, whatever the number of people. `models`: what is shown, by name."""

  def __init__(self, models: dict, limits: Limits):
    self.models = models
    self.limits = limits
    self._lock = threading.Lock()

  def app(self, host: str) -> Starlette:
    routes = [Route(f'/{name}', _file(name)) for name in ('page.css', 'page.js')]
    routes += [
      Route('/', _file('page.html')),
      Route('/runs', self.runs),
      Route('/answer', self.answer, methods=['POST']),
    ]
    # A foreign page whose name resolves to this machine would read the answers as its own.
    if host in LOOPBACK:
      trusted = [Middleware(TrustedHostMiddleware, allowed_hosts=[*LOOPBACK, '[::1]'])]
    else:
      trusted = []
    handlers = {UserError: _wrong, HTTPException: _refused, Exception: _failed}
    return Starlette(routes=routes, middleware=trusted, exception_handlers=handlers)

  async def runs(self, request: Request) -> JSONResponse:
    return JSONResponse(
      {
        'runs': [model.described() for model in self.models.values()],
        'limits': self.limits._asdict(),
      }
    )

  async def answer(self, request: Request) -> JSONResponse:
    model, given = await self._read(request)
    return JSONResponse(await run_in_threadpool(self._answered, model, given))

  def _answered(self, model, given: dict) -> dict:
    with self._lock:
      began = time.monotonic()
      found = model(given)
      return found | {'took': round(time.monotonic() - began, 2)}

  async def _read(self, request: Request) -> tuple:
    """The model that is asked, and {modality: text or Upload}; HTTPException where the request is too large or none."""
    length = request.headers.get('content-length', '')
    if not length.isdigit():
      raise HTTPException(411, 'The request does not say how many bytes it has (Content-Length).')
    if int(length) > self.limits.bytes + FORM:
      raise HTTPException(
        413,
        f'{int(length) / 2**20:.1f} MiB are too much: {self.limits.bytes / 2**20:g} MiB at most (--max_upload_mb).',
      )
    async with request.form(max_files=8, max_fields=8, max_part_size=FORM) as form:
      fields = dict(form)
      name = fields.pop('run', '')
      if name not in self.models:
        raise UserError(f'no run {name!r} here, but {", ".join(self.models)}.')
      model = self.models[name]
      given = {}
      for modality, value in fields.items():
        if modality not in model.kinds:
          raise UserError(f'{name} does not read {modality}: it reads {", ".join(model.kinds)}.')
        if isinstance(value, str) != (model.kinds[modality] == 'text'):
          raise UserError(
            f'{modality} is sent as {"a text" if isinstance(value, str) else "a file"}, where {name} reads {model.kinds[modality]}.'
          )
        given[modality] = (
          value
          if isinstance(value, str)
          else Upload(_plain(value.filename, modality), await value.read())
        )
    return model, given


def _file(name: str):
  async def send(request: Request) -> FileResponse:
    return FileResponse(
      HERE / name,
      headers={
        'Content-Security-Policy': POLICY,
        'Cache-Control': 'no-cache',
        'X-Content-Type-Options': 'nosniff',
      },
    )

  return send


def _plain(name: str | None, modality: str) -> str:
  """A file's name without folders and what cannot be printed."""
  name = ''.join(
    letter for letter in (name or '').replace('\\', '/').split('/')[-1] if letter.isprintable()
  )
  return name[:80] or modality


async def _wrong(request: Request, error: Exception) -> JSONResponse:
  return JSONResponse({'error': str(error)}, 400)


async def _refused(request: Request, error: HTTPException) -> JSONResponse:
  return JSONResponse({'error': error.detail}, error.status_code, error.headers)


async def _failed(request: Request, error: Exception) -> JSONResponse:
  return JSONResponse(
    {'error': 'The model failed on this input. The reason stands where the demo was started.'}, 500
  )
