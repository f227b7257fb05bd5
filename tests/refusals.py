"""What a refused command looks like."""


def assert_refused(code: object, error: str, *words: str) -> None:
    """Exit code 2, and one line on standard error that has all of `words`."""
    assert code == 2, error
    assert len(error.strip().splitlines()) == 1, error
    assert "Traceback" not in error
    for word in words:
        assert word in error
