"""`python -m vit`: the command, where another program's is called `vit`."""

from .cli import main

if __name__ == "__main__":
    main()
