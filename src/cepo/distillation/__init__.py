"""Divergences of the policy from a teacher over the whole vocabulary, for OPSD and SDPO. Imports scoring and below."""
