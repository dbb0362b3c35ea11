"""`python -m embed FILE`: embed one file."""

from embed.cli import main

main()
