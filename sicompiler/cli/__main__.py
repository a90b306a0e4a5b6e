"""`python -m sicompiler.cli`: the command line without an installed script."""

from sicompiler.cli import main

main()
