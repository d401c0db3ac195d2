"""Protocols: what a pretrained encoder is worth, measured on a downstream task each."""
