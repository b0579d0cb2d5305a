"""Which slices of which tensors go together: derived from the ops of a Program alone.

Read in the order of the flow: ``dims`` (what a dimension is), ``equations`` (making two equal), ``rules_*`` (what
each op makes equal), ``inference`` (a Program's dimensions), ``groups`` (what can be cut), ``cut`` (cutting it).
"""
