"""The fixed names that options and records share."""

from __future__ import annotations

PRECISIONS = ("fp32", "bf16", "fp16", "int8")
"""Known precisions, the most exact first."""

DEVICES = ("cpu", "cuda")

DEMOS = ("classification", "embeddings")
"""What ``hasten demo`` can show."""

OBJECTIVES = ("throughput", "latency")

EXPERIMENTS = ("batch-size", "length", "order", "latency")
"""What ``hasten bench`` can measure.

``batch-size``  every format over the user's texts, in arrival order, at several batch sizes
``length``      every format at several batch sizes and lengths
``order``       arrival order, sorted by length, and optimal batches, for the fastest format
``latency``     one text at a time, every format
"""

ON_ERROR = ("stop", "record")
"""What can be done about a row that cannot be read or answered."""

FEWEST_CALIBRATION = 32
"""Fewer texts than this set no ranges of int8 candidates."""

SHORTEST = 4
"""Tokens of the shortest text that ``hasten bench`` makes."""
