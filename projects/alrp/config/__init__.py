"""The config keys of this project, and configs read from files."""

from .defaults import add_alrp_config
from .loading import load_config

__all__ = ["add_alrp_config", "load_config"]
