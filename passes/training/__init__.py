"""The one training loop of planish, on Hugging Face accelerate. Read ``fit.py``, then ``settings.py``."""
