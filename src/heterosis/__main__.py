"""`python -m heterosis` is the `heterosis` command."""

from heterosis.cli import main

main()
