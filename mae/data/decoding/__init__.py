"""Bytes -> pixels."""
