"""``python -m fairque``: the same as ``fairque``."""

from _fairque_command import main

if __name__ == "__main__":
    main()
