"""Tuneful: instruction finetuning that shows its work.

The Python entry points live in `tuneful.api`; the command line in `tuneful.cli`. Nothing heavy is imported here, so that
`tuneful --help` answers at once.
"""

__version__ = "0.1.0"
