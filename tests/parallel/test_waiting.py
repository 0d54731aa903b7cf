"""How long a process waits for another one, as the environment says."""

import pytest

from keras_megatron.parallel.waiting import TIMEOUT, TIMEOUT_VARIABLE, waiting_time

pytestmark = pytest.mark.backend_independent


def test_seconds(monkeypatch):
    monkeypatch.delenv(TIMEOUT_VARIABLE, raising=False)
    assert waiting_time().total_seconds() == TIMEOUT
    monkeypatch.setenv(TIMEOUT_VARIABLE, "2.5")
    assert waiting_time().total_seconds() == 2.5


@pytest.mark.parametrize("text", ["inf", "nan", "0", "-1", "1e20", "soon", ""])
def test_impossible_ones_are_refused(monkeypatch, text):
    monkeypatch.setenv(TIMEOUT_VARIABLE, text)
    with pytest.raises(ValueError, match="must be a number of seconds above 0, at most 1000000"):
        waiting_time()
