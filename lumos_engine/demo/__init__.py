"""The page that ``lumos demo`` writes: clips of the shipped model beside their prompts, its evaluation and its training curve."""

from .clips import Card, make_cards
from .page import write_page

__all__ = ["Card", "make_cards", "write_page"]
