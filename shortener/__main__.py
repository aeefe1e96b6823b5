"""`python -m shortener` is the `shortener` command."""
# Tested by tests/cli/test_commands.py

from shortener.cli import main

main()
