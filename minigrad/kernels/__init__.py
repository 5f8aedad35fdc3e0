"""The GPU kernels: `minigrad.kernels.tl` (Triton) and `minigrad.kernels.cu` (CUDA C++).

Their sources are in the `kernels/` folder of the checkout, where people look for them; a wheel
carries them here. Run from a checkout, this package also looks there.
"""

from pathlib import Path

_checkout = Path(__file__).resolve().parents[2] / "kernels"
if (_checkout / "tl").is_dir():
    __path__.append(str(_checkout))
