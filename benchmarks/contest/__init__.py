"""Gallium beside its peers on one machine: the same models, threads and work, measured in turns."""
