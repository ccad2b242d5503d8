"""How the device files that ship are derived from published latencies: `fit_devices.py` writes them."""
