"""`python -m swarmctl` is `swarmctl`."""

from swarmctl.app import main

if __name__ == "__main__":
    main()
