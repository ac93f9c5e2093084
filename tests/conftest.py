"""For all tests."""

from __future__ import annotations

from hypothesis import settings

# Whether an example takes 200 ms depends on what else the machine does.
settings.register_profile("hasten", deadline=None)
settings.load_profile("hasten")
