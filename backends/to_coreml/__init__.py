"""Core ML packages, and the reference evaluator that proves them without a Mac."""
