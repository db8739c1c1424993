"""Lets `python -m edgekit` do what `edgekit` does."""

from edgekit.cli import main

main()
