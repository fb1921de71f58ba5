"""A headless Chromium that opens pages from disk or of a server here: the fixtures `browser` and
`visit`. Where there is none the tests that want it are skipped.
"""

import os
import shutil

import pytest

CHROMIUM = next(
  filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome', 'chrome'))), None
)


@pytest.fixture(scope='module')
def browser():
  driver = pytest.importorskip('playwright.sync_api', reason='playwright is not installed')
  if CHROMIUM is None:
    pytest.skip('there is no Chromium here')
  with driver.sync_playwright() as play:
    flags = [
      '--use-fake-device-for-media-stream',
      '--use-fake-ui-for-media-stream',
      *(['--no-sandbox'] if os.geteuid() == 0 else []),
    ]
    opened = play.chromium.launch(executable_path=CHROMIUM, args=flags)
    yield opened
    opened.close()


@pytest.fixture
def visit(browser):
  """Path or address -> the page; what its console says, or asks another place for, fails the test
  at its end. A refused request (400) is no fault.
  """
  said = []
  contexts = []

  def visit(place, **options):
    if isinstance(place, str):
      address = place
    else:
      address = place.resolve().as_uri()
    context = browser.new_context(offline=address.startswith('file:'), **options)
    contexts.append(context)
    page = context.new_page()
    page.set_default_timeout(20_000)
    if address.startswith('file:'):
      own = ('file:', 'data:', 'blob:')
    else:
      own = (address, 'data:', 'blob:')
    page.on(
      'console',
      lambda message: None if 'status of 400' in message.text else said.append(message.text),
    )
    page.on('pageerror', lambda error: said.append(str(error)))
    page.on(
      'request', lambda request: None if request.url.startswith(own) else said.append(request.url)
    )
    page.goto(address)
    return page

  yield visit
  for context in contexts:
    context.close()
  assert said == []
