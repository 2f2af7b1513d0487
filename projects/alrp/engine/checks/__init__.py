"""What is looked at before a run: datasets, config keys, training, device."""

from .config import check_config
from .datasets import check_datasets
from .lazy_config import check_lazy_config
from .training import PUBLISHED_BATCH, check_device, check_training, published_learning_rate

__all__ = [
    "PUBLISHED_BATCH",
    "check_config",
    "check_datasets",
    "check_device",
    "check_lazy_config",
    "check_training",
    "published_learning_rate",
]
