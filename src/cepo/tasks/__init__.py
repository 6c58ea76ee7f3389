"""Tasks that come with cepo. The import registers their datasets and methods. Imports data and below."""

from . import figures

__all__ = ["figures"]
