"""Lets these tests import the package from here; test_installed.py installs it for real."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
