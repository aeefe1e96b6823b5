"""Run the `shortener` command with `python -m shortener`."""
# Tested by tests/cli/test_commands.py

from shortener.cli import main

main()
