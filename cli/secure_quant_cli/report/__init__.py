"""The page of ``secure-quant verify --html``: one file, nothing to load from elsewhere."""

from secure_quant_cli.report.page import render, write_page
from secure_quant_cli.report.study import scheme_study

__all__ = ["render", "scheme_study", "write_page"]
