"""Passes: each rewrites a Program, one file each."""
