"""How the built-in data set `starter` is written: tables of records, and the program that puts them into one file.

`src/tuneful/data/starter.json` is what is read; `make.py` writes it from the tables beside it. See README.md.
"""
