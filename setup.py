#!/usr/bin/env python
"""Packaging of alrp. Detectron2 is not on PyPI, so it is a prerequisite: see DEVELOPERS.md."""

import re
from pathlib import Path
from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent


def read_version() -> str:
    """``__version__`` of the package, read without importing it."""
    source = (ROOT / "projects" / "alrp" / "__init__.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "([^"]+)"$', source, re.MULTILINE).group(1)


setup(
    name="alrp",
    version=read_version(),
    description="Ranking losses (aLRP, AP) for object detection with Detectron2",
    author="The alrp authors",
    license="Apache-2.0",
    package_dir={"": "projects"},
    packages=find_packages("projects"),
    python_requires=">=3.9",
    # Lower bounds only; requirements.txt holds the versions that are tested.
    install_requires=[
        "torch>=2.0",
        "torchvision>=0.15",
        "numpy>=1.21",
        "fvcore>=0.1.5",
        "pycocotools>=2.0.6",
        "Pillow>=8.3",
        "opencv-python-headless>=4.5",
        "tqdm",
    ],
    extras_require={
        "cpu": ["numba>=0.57"],
        "plot": ["matplotlib>=3.7"],
        "safetensors": ["safetensors>=0.3"],
        "dev": [
            "pytest>=7",
            "hypothesis>=6",
            "matplotlib>=3.7",
            "numba>=0.57",
            "safetensors>=0.3",
            "black",
            "isort>=5",
            "flake8",
        ],
    },
)
