"""`python -m reprpo` is the command `reprpo`."""

from ._launch import main

main()
