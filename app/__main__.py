"""The command line. `python -m app --help` lists what it does."""

from app.cli import main

if __name__ == "__main__":
    main()
