"""A run becomes one page: `folder.py` reads it, `sections.py` decides what the page says, `build.py` writes it.

run folder -> folder.Run -> sections.Page (tuneful.numbers writes figures, charts.py draws) -> report.html
"""
