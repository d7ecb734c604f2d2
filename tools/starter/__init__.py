"""How the built-in data set `starter` is written: tables of records, and the program that puts them into one file.

The package reads `src/tuneful/data/starter.json`; `make.py` writes it from the tables of this folder. See README.md.
"""
