"""The definition of every operation, in plain torch: slow, fp64-capable, differentiable, readable.

One file per file of ``lumos_engine.ops``, with the same names and signatures. Dense masks exist here only. Results
of floating-point inputs other than fp64 are computed in fp32 and rounded once.
"""
