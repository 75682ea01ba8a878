"""Reports of runs: the HTML page, the comparison of runs, the README's figure and the table in the terminal.

``run_data`` reads a run's folder, and nothing else here reads files of a run. ``plotting``, ``charts`` and
``token_heatmap`` draw, ``numbers`` and ``headline`` write numbers and sentences, and ``page`` and ``compare_page`` put
the HTML together. The names exported here are public.
"""

from limbeck.report.figure import picture
from limbeck.report.page import render_report, write_report
from limbeck.report.run_data import RunData, load_run
from limbeck.report.summary import summary_table

__all__ = ["RunData", "load_run", "picture", "render_report", "summary_table", "write_report"]
