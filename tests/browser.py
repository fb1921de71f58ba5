"""A headless Chromium that opens pages from disk: the fixtures `browser` and `visit`. Where there is none the tests that want it are skipped."""

import os
import shutil

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome', 'chrome'))), None)


@pytest.fixture(scope='module')
def browser():
  driver = pytest.importorskip('playwright.sync_api', reason='playwright is not installed')
  if CHROMIUM is None:
    pytest.skip('there is no Chromium here')
  with driver.sync_playwright() as play:
    flags = ['--no-sandbox'] if os.geteuid() == 0 else []
    opened = play.chromium.launch(executable_path=CHROMIUM, args=flags)
    yield opened
    opened.close()


@pytest.fixture
def visit(browser):
  """path -> the page, opened from disk without a network; what its console says, or asks the network for, fails the test at its end."""
  said, contexts = [], []

  def visit(path, **options):
    context = browser.new_context(offline=True, **options)
    contexts.append(context)
    page = context.new_page()
    page.set_default_timeout(20_000)
    page.on('console', lambda message: said.append(message.text))
    page.on('pageerror', lambda error: said.append(str(error)))
    page.on('request', lambda request: None if request.url.startswith(('file:', 'data:', 'blob:')) else said.append(request.url))
    page.goto(path.resolve().as_uri())
    return page

  yield visit
  for context in contexts:
    context.close()
  assert said == []
