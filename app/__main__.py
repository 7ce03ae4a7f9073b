"""Entry point of the command line: `python -m app --help` lists the commands."""

from app.cli import main

if __name__ == "__main__":
    main()
