"""Run the command line: `python -m fsqueue`."""

from fsqueue.cli import main

main()
