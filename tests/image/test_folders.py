"""A folder is one training's at a time: others are refused, or wait."""

from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet

import pytest

from scmixvi.image._folders import alone_in, in_turn_in


def test_a_second_training_is_refused(tmp_path):
    with alone_in(tmp_path / "new"):
        with (
            pytest.raises(ValueError, match="another training is running in"),
            alone_in(tmp_path / "new"),
        ):
            pass
    with alone_in(tmp_path / "new"):
        pass


def test_a_second_process_waits_for_its_turn(tmp_path, capsys):
    happened = []

    def second():
        with in_turn_in(tmp_path):
            happened.append("second")

    with ThreadPoolExecutor(1) as pool:
        with in_turn_in(tmp_path):
            waiting = pool.submit(second)
            with pytest.raises(NotYet):
                waiting.result(timeout=0.3)
            happened.append("first")
        waiting.result(timeout=20)
    assert happened == ["first", "second"]
    assert capsys.readouterr().out.count("another process works here") == 1


@pytest.mark.parametrize("hold", [alone_in, in_turn_in])
def test_a_folder_that_cannot_be_made(tmp_path, hold):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot be made or written to"), hold(tmp_path / "file"):
        pass
