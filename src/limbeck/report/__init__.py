"""What a run did, shown: the HTML report, the README's picture and the table in the terminal.

Reads a run's folder and nothing else (``data``); ``charts``, ``draw`` and ``heat`` draw, ``page`` puts the
report together.
"""

from limbeck.report.page import render, write_report
from limbeck.report.picture import picture
from limbeck.report.run_data import RunData, load_run
from limbeck.report.summary import summary_table

__all__ = ["RunData", "load_run", "picture", "render", "summary_table", "write_report"]
