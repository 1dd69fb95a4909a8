"""The ids of all packed sequences of one generation call, as the model sees them, with the frames written in place."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..layout import Frame, SequenceLayout, Text, Vocabulary
from ..layout.segments import Segment

FRAME_HEADER = 3  # image_start, size(height), size(width)
FRAME_FOOTER = 1  # image_end


class TokenCanvas:
    """Prompts, headers and frames of every branch in one packed id tensor.

    Sequence i < samples is ``prompt_i, header, frames``; with ``guided`` sequence samples + i is ``header, frames``,
    the same sample without its text (the original's unconditional branch: cut to start at video_start, so its positions
    start there too). All codes are masked at first; headers and row ends are filled in.

    Args:
        prompts: ids of each sample up to and including sep; lengths may differ.
        header: ``video_start, duration, fps``.
        height, width: latent rows and columns of a frame.
        num_frames: latent frames of the whole video, given ones included.
        vocabulary: ids and strides.
        guided: whether to add the unconditional sequences.
        window_frames, sink_frames: see :class:`SamplingSettings`.

    Attributes:
        layout: :class:`SequenceLayout` of all sequences with all frames.
        tokens: int64 [layout.num_tokens], what the model is to see.
        codes_per_frame: height * width.
        content_tokens: height * (width + 1), row ends included.
        newline: bool [content_tokens], the row ends among them.
    """

    def __init__(
        self,
        prompts: Sequence[Sequence[int]],
        header: Sequence[int],
        *,
        height: int,
        width: int,
        num_frames: int,
        vocabulary: Vocabulary,
        guided: bool,
        window_frames: int | None = None,
        sink_frames: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.vocabulary = vocabulary
        self.num_samples = len(prompts)
        self.num_frames = num_frames
        self.window_frames = window_frames
        self.sink_frames = sink_frames
        self.codes_per_frame = height * width
        self.content_tokens = height * (width + 1)
        texts = [[*prompt, *header] for prompt in prompts] + [list(header)] * (len(prompts) if guided else 0)
        self.text_tokens = [len(text) for text in texts]
        self._frame = Frame(height, width, newlines=True, header=FRAME_HEADER, footer=FRAME_FOOTER)
        self.layout = self.layout_of(num_frames).to(device)
        row = [vocabulary.mask] * width + [vocabulary.newline]
        empty = [*vocabulary.frame_header(height, width), *(row * height), vocabulary.image_end]
        self.tokens = torch.tensor(
            [id_ for text in texts for id_ in text + empty * num_frames], dtype=torch.int64, device=device
        )
        content = torch.arange(self.content_tokens, device=device)
        self.newline = content % (width + 1) == width
        self._texts = torch.tensor(self.text_tokens, device=device)[:, None]
        self._begins = self.layout.cu_seqlens[:-1].to(torch.int64)[:, None]
        self._content = FRAME_HEADER + content

    @property
    def num_sequences(self) -> int:
        """Samples times branches."""
        return len(self.text_tokens)

    def layout_of(self, num_frames: int) -> SequenceLayout:
        """Layout of all sequences cut after ``num_frames`` frames."""
        segments: list[list[Segment]] = [[Text(text), *[self._frame] * num_frames] for text in self.text_tokens]
        if self.window_frames is None:
            return SequenceLayout.from_segments(segments, strides=self.vocabulary.strides)
        return SequenceLayout.frame_window(
            segments, self.window_frames, self.sink_frames, strides=self.vocabulary.strides
        )

    def frame_begin(self, frame: int) -> list[int]:
        """Index of the frame's first token (its header) in each sequence; for ``num_frames`` the sequences' ends."""
        return [text + frame * self._frame.num_tokens for text in self.text_tokens]

    def content_index(self, frame: int) -> Tensor:
        """Indices of the frame's content in its sequence, row ends included, int64 [sequences, content_tokens]."""
        return self._texts + frame * self._frame.num_tokens + self._content

    def code_index(self, frame: int, codes: Tensor | None = None) -> Tensor:
        """Indices of the frame's visual codes in its sequence, int64 [sequences, n]: of all in raster order, or of those at
        the places ``codes`` int64 [samples, n] there."""
        index = self.content_index(frame)[:, ~self.newline]
        return index if codes is None else index.gather(1, codes.repeat(self.num_sequences // self.num_samples, 1))

    def content_slots(self, frame: int) -> Tensor:
        """Packed slots of the frame's content, row ends included, int64 [sequences, content_tokens]."""
        return self._begins + self.content_index(frame)

    def write(self, frame: int, ids: Tensor) -> None:
        """Put ids int64 [samples, codes_per_frame] into every branch of their sample."""
        slots = self._begins + self.code_index(frame)
        self.tokens[slots] = ids.repeat(self.num_sequences // self.num_samples, 1)

    def hide(self, frame: int, pattern: Tensor) -> None:
        """Put the mask id where ``pattern`` bool [content_tokens] is set, in every sequence."""
        self.tokens[self.content_slots(frame)[:, pattern]] = self.vocabulary.mask
