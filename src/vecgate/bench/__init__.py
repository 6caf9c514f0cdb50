"""The load generator: it speaks HTTP only, so that it measures any server, and checks every answer that it counts.

    run -> texts, plan          what is asked
        -> wire, load, target   how it is sent, and when
        -> read                 whether the answers are right
        -> figures, result      what is made of them
        -> page, plots, table   how it is shown

Knows no engine: what this machine can do without HTTP is measured by processes of their own (ceilings, vecgate.forward).
"""
