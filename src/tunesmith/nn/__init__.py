"""Layers that two or more models use.  Torch only: nothing here knows a model or a user (nor a file, but for files.py
and pretrained.py).

THE SHAPE LEGEND, used by every signature and comment of the package:

    B  batch                C  audio channels         T  audio samples
    K  codebooks            S  code steps (frames)    V  codes in a codebook
    D  model width          N  attention heads        H  width of one head
    L  text length          M  memory length (keys that a query can see)

`Int[Tensor, "B K S"]` reads: integer codes, batch first, then codebooks, then time.
"""
