"""``python -m fairque``: the same as ``fairque``."""

from fairque.cli import main

if __name__ == "__main__":
    main()
