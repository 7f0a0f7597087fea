"""`python -m hf_arch` is `hf-arch`."""

from hf_arch.cli import main

if __name__ == "__main__":
    main()
