"""What CI asks of a GPU before it believes it: a wrong answer, an abort and silence are all told, and the CPU is taken."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import gpu

RIGHT = "product = lambda name: a @ b\nexponential = lambda name: np.exp(a)\ndevice = 'gpu'\n"


@pytest.fixture(autouse=True)
def afresh() -> Iterator[None]:
    gpu.found.cache_clear()
    yield
    gpu.found.cache_clear()


@pytest.mark.parametrize(
    ("script", "device", "why"),
    [
        (RIGHT, "gpu", "its products and exponentials are numpy's"),
        (RIGHT + "product = lambda name: 0 * a", "cpu", "its product in float32 is off by"),
        (RIGHT + "exponential = lambda name: np.exp(a) * np.nan", "cpu", "its exponential in float32 is off by nan"),
        ("import os\nos.abort()", "cpu", "it ended with status -6"),
        ("raise SystemExit('it finds none')", "cpu", "it finds none"),
    ],
)
def test_a_gpu_is_believed_by_its_answers(
    script: str, device: str, why: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(gpu.LIBRARIES, "mlx", script)
    output, summary = tmp_path / "output", tmp_path / "summary"
    assert gpu.main(["--output", str(output), "--summary", str(summary), "mlx"]) == 0
    assert output.read_text() == f"mlx={device}\n"
    assert f"| mlx | {device} | {why}" in summary.read_text()


def test_silence_is_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "LIMIT_S", 0.2)
    monkeypatch.setitem(gpu.LIBRARIES, "mlx", "import time\ntime.sleep(60)")
    assert gpu.found("mlx") == gpu.Found("cpu", "no answer in 0 s")
