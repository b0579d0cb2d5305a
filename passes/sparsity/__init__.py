"""What sparsify is made of. Read ``patterns.py``, then ``layers.py``, ``criteria.py`` and ``walk.py``."""
