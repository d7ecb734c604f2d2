"""`python -m tuneful`, and `torchrun -m tuneful` for several processes: the command line."""

from tuneful.cli import main

if __name__ == "__main__":
    main()
