"""Tasks that come with cepo; importing it registers their data sets and methods. Imports data and below."""

from . import figures

__all__ = ["figures"]
