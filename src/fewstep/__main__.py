"""`python -m fewstep` and `torchrun -m fewstep`: the command line."""

from fewstep.cli.main import main

if __name__ == "__main__":
    main()
