"""What is looked at before a run: datasets, config keys, training, device."""

from .datasets import check_class_count, check_datasets
from .evaluation import check_evaluation
from .keys import EVALUATION_KEYS
from .lazy_config import check_lazy_config
from .lazy_values import OPTIONAL_KEYS, check_complete, check_lazy_values, in_lazy_names
from .training import PUBLISHED_BATCH, check_device, check_training, published_learning_rate
from .yaml_config import check_config

__all__ = [
    "EVALUATION_KEYS",
    "OPTIONAL_KEYS",
    "PUBLISHED_BATCH",
    "check_class_count",
    "check_complete",
    "check_config",
    "check_datasets",
    "check_device",
    "check_evaluation",
    "check_lazy_config",
    "check_lazy_values",
    "check_training",
    "in_lazy_names",
    "published_learning_rate",
]
