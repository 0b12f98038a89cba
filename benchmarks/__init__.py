"""Speed, memory and evidence for defaults, each a command that writes JSON."""

from pathlib import Path

RESULTS = Path(__file__).parent / "results"
