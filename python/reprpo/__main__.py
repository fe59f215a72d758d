"""Runs the command `reprpo` for `python -m reprpo`."""

from ._launch import main

main()
