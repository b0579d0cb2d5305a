"""Backends: each lowers a Program to the files one family of runtimes reads."""
