"""The methods, one file each: what teachers are told, evidence, placement, options. Imports references, credit.py."""

from .method import OTHER_MODEL, STUDENT, Context, Evidence, LabeledGroup, Method, MethodDoc, StageContext
from .options import MethodOptions
from .registry import METHODS, find_method, register_method
from .token_advantages import CreditInputs, TokenAdvantages

__all__ = [
    "METHODS",
    "OTHER_MODEL",
    "STUDENT",
    "Context",
    "CreditInputs",
    "Evidence",
    "LabeledGroup",
    "Method",
    "MethodDoc",
    "MethodOptions",
    "StageContext",
    "TokenAdvantages",
    "find_method",
    "register_method",
]
