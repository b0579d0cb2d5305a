"""TFLite (LiteRT): phones, single-board computers, microcontrollers."""
