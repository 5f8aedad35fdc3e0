"""The operations, one file each: reference, differentiable function and public function."""

# ruff: noqa: F403, I001  (the public names of every op file; the order is that of dependence)
import sys

from minigrad.arguments import Axis as Axis
from minigrad.ops.creation import *
from minigrad.ops.creation import copied as copied
from minigrad.ops.creation import copy as copy
from minigrad.ops.creation import copy_fitting as copy_fitting
from minigrad.ops.creation import copy_into as copy_into
from minigrad.ops.creation import names_device as names_device
from minigrad.ops.select import *
from minigrad.ops.unary import *
from minigrad.ops.binary import *
from minigrad.ops.movement import *
from minigrad.ops.reduce import *
from minigrad.ops.indexing import *
from minigrad.ops.softmax import *
from minigrad.ops.sort import *
from minigrad.ops.dropout import *
from minigrad.ops.embedding import *
from minigrad.ops.linear_bf16 import *
from minigrad.ops.matmul import *
from minigrad.ops.einsum import *
from minigrad.ops.layer_norm import *
from minigrad.ops.cross_entropy import *
from minigrad.ops.linear_cross_entropy import *
from minigrad.ops.attention import *
from minigrad.ops.attention_cached import *
from minigrad.ops.attention_varlen import *
from minigrad.ops.rotary import *

# The op files: where dispatch looks for a kernel's reference and cost.
MODULES = [sys.modules[name] for name in list(sys.modules) if name.startswith(f"{__name__}.")]
__all__ = [name for module in MODULES for name in module.__all__]
