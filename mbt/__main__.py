"""`python -m mbt` and `torchrun -m mbt`."""

from mbt.cli import main

if __name__ == "__main__":
    main()
