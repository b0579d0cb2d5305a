"""Distillation: training that imitates a teacher. Read ``distill.py``, then ``losses.py``."""
