"""An OpenVINO backend for planish."""
