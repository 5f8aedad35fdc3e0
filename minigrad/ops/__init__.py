"""The operations, one file each: reference, differentiable function and public function."""

# ruff: noqa: F403, I001  (the public names of every op file; the order is that of dependence)
from minigrad.ops import creation, elementwise, movement, reduce, indexing
from minigrad.ops import softmax as softmax_file
from minigrad.ops import sort as sort_file
from minigrad.ops import dropout as dropout_file
from minigrad.ops import embedding as embedding_file
from minigrad.ops import bias_gelu as bias_gelu_file
from minigrad.ops import matmul as matmul_file
from minigrad.ops import layer_norm as layer_norm_file
from minigrad.ops import cross_entropy as cross_entropy_file
from minigrad.ops import attention as attention_file
from minigrad.ops import rotary as rotary_file
from minigrad.ops.attention import *
from minigrad.ops.bias_gelu import *
from minigrad.ops.creation import *
from minigrad.ops.creation import copy_into
from minigrad.ops.cross_entropy import *
from minigrad.ops.dropout import *
from minigrad.ops.elementwise import *
from minigrad.ops.embedding import *
from minigrad.ops.indexing import *
from minigrad.ops.layer_norm import *
from minigrad.ops.matmul import *
from minigrad.ops.movement import *
from minigrad.ops.reduce import *
from minigrad.ops.reduce import Axis
from minigrad.ops.rotary import *
from minigrad.ops.softmax import *
from minigrad.ops.sort import *

# Where dispatch looks for a kernel's reference and cost.
MODULES = (
    creation,
    elementwise,
    reduce,
    indexing,
    softmax_file,
    layer_norm_file,
    attention_file,
    bias_gelu_file,
    cross_entropy_file,
    embedding_file,
    dropout_file,
    matmul_file,
)
__all__ = [
    "Axis",
    "copy_into",
    *(
        name
        for module in (*MODULES, movement, sort_file, rotary_file)
        for name in module.__all__
    ),
]
