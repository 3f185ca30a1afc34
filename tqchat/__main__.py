"""``python -m tqchat``."""

import signal
import sys

if __name__ == "__main__":
    # An interrupt while the modules are loaded ends the process without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from tqchat.cli import main

    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main())
