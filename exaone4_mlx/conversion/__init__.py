"""The converter: plan, quantize, calibrate, write, verify, evaluate, upload."""
