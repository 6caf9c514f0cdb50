"""`vecgate verify`: whether the models of this machine give the right rows, by every witness there is, and what none told.

Drives the engine from outside, as a client would; what a loaded model shows of itself is engine/verify.py's matter.
"""
