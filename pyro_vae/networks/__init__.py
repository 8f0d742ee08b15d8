"""Networks that map shapes to shapes: one file each."""

from pyro_vae.component import import_members

globals().update(import_members(__name__))
