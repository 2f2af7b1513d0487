"""Proposal generators."""

from .alrp_rpn import ALRPRPN, PriorRPNHead

__all__ = ["ALRPRPN", "PriorRPNHead"]
