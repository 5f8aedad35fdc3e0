"""Triton kernels. Each file has the kernels, and launchers with the names and arguments of the
native ones in `csrc/bindings.cpp`; `minigrad.gpu` compiles and runs what launchers describe."""
