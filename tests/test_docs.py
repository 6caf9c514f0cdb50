"""docs/ says what the code says."""

from pathlib import Path

import pytest

pytest.importorskip("mlx.core", reason="sizes are counted on MLX's architectures", exc_type=ImportError)

from docs import models


def test_models_md_is_what_the_tables_say(root: Path) -> None:
    written = (root / "docs" / "models.md").read_text(encoding="utf-8")
    assert written == models.document(), "`python -m docs.models > docs/models.md` writes it anew"
