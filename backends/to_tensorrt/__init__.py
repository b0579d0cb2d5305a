"""ONNX with explicit Q/DQ for NVIDIA TensorRT, and the scripts that build it into an engine on the device."""
