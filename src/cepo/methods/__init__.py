"""The methods, one file each: what teachers are told, evidence, placement, options. Imports references, credit.py."""

from .method import OTHER_MODEL, STUDENT, Context, Evidence, Facts, KnownGroup, Method, Tools
from .options import MethodOptions
from .placement import Placement, PlacementInputs
from .registry import METHODS, find_method, register_method

__all__ = [
    "METHODS",
    "OTHER_MODEL",
    "STUDENT",
    "Context",
    "Evidence",
    "Facts",
    "KnownGroup",
    "Method",
    "MethodOptions",
    "Placement",
    "PlacementInputs",
    "Tools",
    "find_method",
    "register_method",
]
