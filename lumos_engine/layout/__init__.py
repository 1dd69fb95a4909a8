"""Layout of packed sequences: segments, ids, positions, visibility and the schedule that kernels walk."""

from .schedule import Schedule
from .segments import Frame, Segment, Text
from .sequence_layout import SequenceLayout
from .step import LayoutStep
from .vocabulary import Vocabulary

__all__ = ["Frame", "LayoutStep", "Schedule", "Segment", "SequenceLayout", "Text", "Vocabulary"]
