"""Every kind into a folder each of the one that is named."""

import sys
from pathlib import Path

from tests.tiny import ALL, build

for kind in ALL:
    print(build(kind, Path(sys.argv[1]) / kind))
