"""What makes training on a CPU fast: kernels in C++, compiled at first use, and memory for them.

Each kernel does in one pass over memory what torch's operations do in several. Every caller has
torch's operations as well, for where there are no kernels: another kind of processor, no C++
compiler, float64. ``library.kernels_state`` says whether they run.
"""
