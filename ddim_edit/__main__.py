"""`python -m ddim_edit` is `ddim-edit`."""

from ddim_edit.cli import main

if __name__ == "__main__":
    main()
