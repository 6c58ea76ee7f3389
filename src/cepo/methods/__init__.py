"""The methods, one file each, with their options and shared stages. Imports references and credit.py."""

from .method import Method, MethodDoc, MethodOptions
from .option_fields import option
from .registry import METHODS, find_method, method_options, register_method
from .stages import OTHER_MODEL, STUDENT, Context, Evidence, LabeledGroup, StageContext
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
    "method_options",
    "option",
    "register_method",
]
