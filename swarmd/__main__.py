"""`python -m swarmd` is the same as `swarmd`."""

from swarmd.cli import main

if __name__ == "__main__":
    main()
