"""Data sets: one file each."""

from pyro_vae.component import import_members

globals().update(import_members(__name__))
