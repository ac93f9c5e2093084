"""Frozen records that cross module borders.

A record is validated once, when it is made, and does no I/O. Units stand in the names:
``latency_s`` is in seconds, ``memory_bytes`` in bytes. Raw samples are kept; what can be
derived from them is a property. :mod:`hasten.plain` turns records into JSON values and back.
"""

from hasten.options.choices import DEVICES, EXPERIMENTS, OBJECTIVES, ON_ERROR, PRECISIONS
from hasten.records.audited import Audit, Verdict
from hasten.records.bulk import (
    BulkPlan,
    Place,
    Receipt,
    Shard,
    Source,
    Summary,
    Tally,
)
from hasten.records.cascade import Cascade, CascadeProof, Reading, Step
from hasten.records.events import (
    Briefing,
    Decided,
    Event,
    Forecast,
    Notice,
    Progress,
    Standing,
)
from hasten.records.exported import Exported
from hasten.records.machine import (
    MODELS,
    WORTH_TRYING,
    Candidate,
    Ceiling,
    Gpu,
    Hardware,
)
from hasten.records.measured import (
    BatchingParity,
    CostTable,
    EndToEnd,
    Errors,
    Flip,
    Interval,
    Measurement,
    Parity,
    Probes,
    Quality,
    ShapeTime,
    StartUp,
    Strategy,
)
from hasten.records.model import (
    LengthProfile,
    ModelInfo,
    Text,
    example_ids,
)
from hasten.records.results import (
    Bench,
    FirstAnswer,
    Format,
    FurtherStage,
    Plan,
    Row,
    Settings,
    Status,
    Tuning,
)
from hasten.records.stages import HandsOn, Stats
from hasten.records.student import Student

__all__ = [
    "DEVICES",
    "EXPERIMENTS",
    "MODELS",
    "OBJECTIVES",
    "ON_ERROR",
    "PRECISIONS",
    "WORTH_TRYING",
    "Audit",
    "BatchingParity",
    "Bench",
    "Briefing",
    "BulkPlan",
    "Candidate",
    "Cascade",
    "CascadeProof",
    "Ceiling",
    "CostTable",
    "Decided",
    "EndToEnd",
    "Errors",
    "Event",
    "Exported",
    "FirstAnswer",
    "Flip",
    "Forecast",
    "Format",
    "FurtherStage",
    "Gpu",
    "HandsOn",
    "Hardware",
    "Interval",
    "LengthProfile",
    "Measurement",
    "ModelInfo",
    "Notice",
    "Parity",
    "Place",
    "Plan",
    "Probes",
    "Progress",
    "Quality",
    "Reading",
    "Receipt",
    "Row",
    "Settings",
    "ShapeTime",
    "Shard",
    "Source",
    "Standing",
    "StartUp",
    "Stats",
    "Status",
    "Step",
    "Strategy",
    "Student",
    "Summary",
    "Tally",
    "Text",
    "Tuning",
    "Verdict",
    "example_ids",
]
