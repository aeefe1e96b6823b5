"""`python -m shortener` is the `shortener` command."""

from shortener.cli import main

main()
