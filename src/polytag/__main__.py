"""``python -m polytag``, which torchrun needs: ``torchrun --nproc-per-node 2 -m polytag train``."""

from polytag.cli import main

if __name__ == "__main__":
    main()
