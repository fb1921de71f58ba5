"""Writes a page of a run, of several runs side by side, or of a sweep."""

from mmlm.cli import flags
from mmlm.reports import build


def report(options: flags.Report) -> None:
  """Writes report.html, or comparison.html of several runs."""
  build.report(
    options.folders, options.settings, options.against, options.attention, options.output
  )
