"""``python -m limbeck`` is the command ``limbeck``; so is ``accelerate launch -m limbeck``."""

from limbeck.cli import main

if __name__ == "__main__":
    main()
