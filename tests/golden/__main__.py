"""Records the golden numbers: `python -m tests.golden`."""

from tests.golden.numbers import main

main()
