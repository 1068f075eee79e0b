"""Work that blocks says what it is at, once it takes long."""

import threading

import pytest

from swarmd.daemon.patience import said_if_long


def test_what_takes_long_is_said_again_and_again_until_it_is_over() -> None:
    said: list[str] = []
    thrice = threading.Event()

    def tell(line: str) -> None:
        said.append(line)
        if len(said) == 3:
            thrice.set()

    with said_if_long("reading checkpoints", tell, after_s=0.01, again_s=0.02):
        assert thrice.wait(60)
    count = len(said)
    assert said[0] == "reading checkpoints (for 0 s)"
    assert not [it for it in threading.enumerate() if it.name == "says what takes long"]
    assert len(said) == count


def test_what_is_over_soon_is_not_said() -> None:
    said: list[str] = []
    with pytest.raises(KeyError), said_if_long("reading", said.append, after_s=60.0):
        raise KeyError
    assert said == []
