"""``python -m tqchat``."""

import sys

from tqchat.cli import main

if __name__ == "__main__":
    sys.exit(main())
