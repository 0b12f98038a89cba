"""Every example of the user guide on image VAEs runs, from top to bottom."""

import re
from pathlib import Path

import torch

PAGE = Path(__file__).parents[2] / "docs" / "user_guide" / "image_vaes.md"


def test_examples_of_the_guide_run(monkeypatch):
    monkeypatch.setattr("scmixvi.core.memory.keep_freed_memory", lambda: True)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) >= 5
    names = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    assert names["nll"].shape == (5,)
    assert names["representation"].shape == (5, 2 * 3 * 8)
    assert torch.isfinite(names["terms"].log_lik).all()
    assert names["drawn"].shape == (2, 3, 8, 8)
