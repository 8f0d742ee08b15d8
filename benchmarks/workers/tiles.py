"""Rows (samples) that pass through the decoder together: tiles worth trying."""

TILES = 500, 1000, 2500, 5000
