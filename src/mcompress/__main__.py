"""`python -m mcompress`."""

from mcompress.cli import main

if __name__ == "__main__":
    main()
