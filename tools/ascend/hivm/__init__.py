"""The final HIVM of a 910B kernel, executed and checked on the host: the last link before CANN's own tools."""
