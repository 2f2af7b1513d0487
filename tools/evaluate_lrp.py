#!/usr/bin/env python
"""LRP error of a COCO result file of any framework: ``alrp-evaluate``, from a checkout."""

import importlib.util
import sys
from pathlib import Path

if importlib.util.find_spec("alrp") is None:  # not installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "projects"))

from alrp.evaluate import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
