"""A bundle's TFLite files on emulated Arm64, in the old runtime that shipped apps carry: do they load there, and do Arm's kernels agree with x86's?

`python -m mcompress.export.arm64` sets up the emulation once; `mcompress verify BUNDLE --arm64` uses it. It says what Arm computes, never how fast.
"""
