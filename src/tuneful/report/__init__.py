"""A run becomes one page: `folder.py` reads it, `sections.py` says what the page says, `build.py` writes it.

run folder -> folder.Run -> sections.Page (numbers.py writes figures, charts.py draws) -> report.html
"""
