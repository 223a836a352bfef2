"""`python -m nmsfree`, for launchers that start modules, as torchrun does."""

from nmsfree_start import main

if __name__ == "__main__":
    main()
