"""Which node of ``MODEL`` holds the options of a meta-architecture's head."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils.registry import Registry

from .errors import UserError

# Meta-architecture -> node of MODEL with its NUM_CLASSES. Subclasses read the same node.
HEAD_NODES = {
    "RetinaNet": "RETINANET",
    "FoveaBox": "FOVEABOX",
    "GeneralizedRCNN": "ROI_HEADS",
}


def lineage(name: str, registry: Registry = META_ARCH_REGISTRY) -> tuple[str, ...]:
    """Names of a registered component and of all its bases; only its own if unknown.

    Args:
        name: as the config has it.
        registry: of meta-architectures, or of parts of a model, as ``ROI_HEADS_REGISTRY``.
    """
    if name not in registry:
        return (name,)
    # The registries take functions, too, as a meta-architecture that is built by one.
    return (name, *(base.__name__ for base in getattr(registry.get(name), "__mro__", ())))


def head_node(cfg: CfgNode) -> str | None:
    """Name of the node of ``cfg.MODEL`` that the head of ``cfg.MODEL.META_ARCHITECTURE`` reads.

    ``MODEL.ALRP.HEAD_NODE`` names it for a meta-architecture that descends from none of
    ``HEAD_NODES``.

    Returns:
        str | None: "RETINANET", for example; None for an architecture nothing is known of.

    Raises:
        UserError: if ``MODEL.ALRP.HEAD_NODE`` names no node of ``MODEL``.
    """
    own = cfg.MODEL.ALRP.HEAD_NODE
    if not own:
        names = lineage(cfg.MODEL.META_ARCHITECTURE)
        return next((HEAD_NODES[name] for name in names if name in HEAD_NODES), None)
    if not isinstance(cfg.MODEL.get(own), CfgNode):
        raise UserError(
            f'MODEL.ALRP.HEAD_NODE must name a node of MODEL, such as "RETINANET", but is "{own}".'
        )
    return own
