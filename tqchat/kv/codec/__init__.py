"""Vectors <-> codes: rotation, codebook, packing, fitting. Method and figures: ``tqchat/kv/CODEC.md``."""
