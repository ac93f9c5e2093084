"""For all tests."""

from __future__ import annotations

import signal

from hypothesis import settings

# Whether an example takes 200 ms depends on what else the machine does.
settings.register_profile("hasten", deadline=None)
settings.load_profile("hasten")

# A shell starts jobs in the background with SIGINT ignored, and processes inherit that: tests that
# interrupt one would wait in vain.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
