"""`python -m vecgate` is the command line."""

from vecgate.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
