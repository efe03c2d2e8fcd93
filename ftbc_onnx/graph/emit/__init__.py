"""Emitters: one plan laid out in time."""
